//! A network of namespaces: one for PostgreSQL, one for each replica, and the one with the switch, in which the clients are.
//!
//! Each has a cable (a veth pair) to the switch (a bridge). What is cut drops packets without a word, as a broken network
//! does: nobody gets a reset, and no port is closed.

use std::{ffi::OsStr, process::Stdio};

use tokio::process::Command;

use crate::Result;

/// The variable with which this program tells itself that it runs inside the network of this name.
pub const INSIDE: &str = "KEYSTEAD_CHAOS_NETWORK";
/// The machines at the switch, with the last number of their addresses.
pub const MACHINES: [(&str, u8); 3] = [("pg", 2), ("a", 11), ("b", 12)];

/// A network, by the name that its namespaces begin with.
#[derive(Clone, Debug)]
pub struct Network {
    name: String,
}

impl Network {
    /// The network that this program is in.
    ///
    /// # Errors
    /// It is in none.
    pub fn of_this_process() -> Result<Self> {
        Ok(Self { name: std::env::var(INSIDE)? })
    }

    /// Makes the namespaces, the switch and the cables.
    ///
    /// # Errors
    /// `ip` fails, for instance because this is not root.
    pub async fn create() -> Result<Self> {
        let network = Self { name: format!("ksc{}", std::process::id()) };
        let connected = network.connect().await;
        if connected.is_err() {
            network.remove().await;
        }
        connected.map(|()| network)
    }

    async fn connect(&self) -> Result<()> {
        let hub = self.name.as_str();
        ip(&["netns", "add", hub]).await?;
        ip(&["-n", hub, "link", "set", "lo", "up"]).await?;
        ip(&["-n", hub, "link", "add", "switch", "type", "bridge"]).await?;
        ip(&["-n", hub, "addr", "add", "10.213.0.1/24", "dev", "switch"]).await?;
        ip(&["-n", hub, "link", "set", "switch", "up"]).await?;
        for (machine, number) in MACHINES {
            let (namespace, port) = (&*self.namespace(machine), &*format!("to-{machine}"));
            ip(&["netns", "add", namespace]).await?;
            let cable = ["link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace];
            ip(&[&["-n", hub], &cable[..]].concat()).await?;
            ip(&["-n", hub, "link", "set", port, "master", "switch", "up"]).await?;
            ip(&["-n", namespace, "addr", "add", &format!("10.213.0.{number}/24"), "dev", "eth0"]).await?;
            ip(&["-n", namespace, "link", "set", "eth0", "up"]).await?;
            ip(&["-n", namespace, "link", "set", "lo", "up"]).await?;
        }
        Ok(())
    }

    /// Removes it, and ends what still runs in it.
    pub async fn remove(&self) {
        let namespaces = MACHINES.iter().map(|(machine, _)| self.namespace(machine));
        for namespace in namespaces.chain([self.name.clone()]) {
            let pids = Command::new("ip").args(["netns", "pids", &namespace]).output().await;
            for pid in pids.iter().flat_map(|pids| pids.stdout.split(u8::is_ascii_whitespace)) {
                if let Ok(pid) = std::str::from_utf8(pid)
                    && !pid.is_empty()
                {
                    let _ = signal(pid, "KILL").await;
                }
            }
            if let Err(error) = ip(&["netns", "del", &namespace]).await {
                eprintln!("keystead-chaos: {error}");
            }
        }
    }

    /// This program again, among the clients of the network.
    pub fn command_for_clients(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program).env(INSIDE, &self.name);
        command
    }

    /// A program on a machine. It is the process itself that gets its signals, and it ends with this one.
    pub fn command(&self, machine: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(machine)]).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Drops all packets that come to a machine or leave it: all of them, or those from and to one other machine.
    ///
    /// # Errors
    /// `iptables` fails.
    pub async fn cut(&self, machine: &str, other: Option<&str>) -> Result<()> {
        self.rules(machine, other, "-I").await
    }

    /// Takes back what [`Network::cut`] did.
    ///
    /// # Errors
    /// `iptables` fails.
    pub async fn mend(&self, machine: &str, other: Option<&str>) -> Result<()> {
        self.rules(machine, other, "-D").await
    }

    async fn rules(&self, machine: &str, other: Option<&str>, action: &str) -> Result<()> {
        for (chain, side) in [("INPUT", "-s"), ("OUTPUT", "-d")] {
            let mut iptables = self.command(machine);
            iptables.args(["iptables", "-w", action, chain]);
            if let Some(other) = other {
                iptables.args([side, &address(other)]);
            }
            succeed(iptables.args(["-j", "DROP"])).await?;
        }
        Ok(())
    }

    fn namespace(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }
}

/// The address of a machine.
pub fn address(machine: &str) -> String {
    let number = MACHINES.iter().find(|(name, _)| *name == machine).map_or(0, |(_, number)| *number);
    format!("10.213.0.{number}")
}

/// Sends a signal to a process, by its name (`STOP`).
///
/// # Errors
/// The process is not there.
pub async fn signal(pid: &str, name: &str) -> Result<()> {
    succeed(Command::new("kill").args([&format!("-{name}"), pid])).await.map(drop)
}

/// Runs a program to its end and gives what it wrote.
///
/// # Errors
/// It cannot be run, or ends otherwise than well; the text has what it wrote to stderr.
pub async fn succeed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let (command, said) = (command.as_std(), String::from_utf8_lossy(&output.stderr));
    Err(format!("{command:?}: {} {said}", output.status).into())
}

async fn ip(arguments: &[&str]) -> Result<()> {
    succeed(Command::new("ip").args(arguments)).await.map(drop)
}
