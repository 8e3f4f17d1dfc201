//! [`Guard`]: which addresses of the network the server may be sent to by its users.
//!
//! A server that fetches what anybody names can be made to reach what only it can reach: its database, its neighbours in the cluster, the
//! cloud's metadata. So only addresses of the public internet are permitted, and the check is made on the address that is connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::http::client_address::IpNetwork;

/// IPv4 ranges that are not the public internet, by first address and prefix.
/// <https://www.iana.org/assignments/iana-ipv4-special-registry>
const NOT_PUBLIC_V4: [(Ipv4Addr, u32); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 31, 196, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];
/// All of the public internet with IPv6 so far: what is outside is loopback, link-local, unique local, multicast, mapped or not yet given out.
/// <https://www.iana.org/assignments/ipv6-address-space>
const GLOBAL_V6: (Ipv6Addr, u32) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
/// What within it is not: protocol assignments (Teredo, ORCHID), documentation, and 6to4, which holds IPv4 addresses of any kind.
/// <https://www.iana.org/assignments/iana-ipv6-special-registry>
const NOT_PUBLIC_V6: [(Ipv6Addr, u32); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Which addresses may be connected to.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    allowed: Vec<IpNetwork>,
    denied: Vec<IpNetwork>,
}

impl Guard {
    /// The public internet without `denied`, and `allowed` whatever else is said.
    pub(crate) fn new(allowed: Vec<IpNetwork>, denied: Vec<IpNetwork>) -> Self {
        Self { allowed, denied }
    }

    /// Whether this address may be connected to. An IPv4 address written as IPv6 is an IPv4 address.
    pub(crate) fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_in = |networks: &[IpNetwork]| networks.iter().any(|network| network.contains(address));
        is_in(&self.allowed) || (is_public(address) && !is_in(&self.denied))
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let bits = address.to_bits();
            !NOT_PUBLIC_V4.iter().any(|(network, prefix)| (bits ^ network.to_bits()) >> (32 - prefix) == 0)
        }
        IpAddr::V6(address) => {
            let is_in = |(network, prefix): &(Ipv6Addr, u32)| {
                (address.to_bits() ^ network.to_bits()) >> (128 - prefix) == 0
            };
            is_in(&GLOBAL_V6) && !NOT_PUBLIC_V6.iter().any(is_in)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_the_public_internet_is_permitted() {
        let guard = Guard::new(Vec::new(), Vec::new());
        for public in
            ["1.1.1.1", "93.184.216.34", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0"]
        {
            assert!(guard.permits(address(public)), "{public}");
        }
        for public in ["2606:4700::1111", "2a00:1450:4001::1", "::ffff:1.1.1.1"] {
            assert!(guard.permits(address(public)), "{public}");
        }
        for private in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ] {
            assert!(!guard.permits(address(private)), "{private}");
        }
    }

    #[test]
    fn the_lists_of_the_configuration_widen_and_narrow() {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        let guard =
            Guard::new(networks(&["10.1.0.0/16", "1.2.3.4"]), networks(&["1.2.0.0/16", "2606:4700::/32"]));
        for (text, expected) in [
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("1.2.3.4", true),
            ("1.2.3.5", false),
            ("1.3.0.1", true),
            ("2606:4700::1111", false),
            ("::ffff:10.1.2.3", true),
        ] {
            assert_eq!(guard.permits(address(text)), expected, "{text}");
        }
    }
}
