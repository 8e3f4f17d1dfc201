//! Who is at the other end: the address of the client behind trusted proxies, and its user agent.

use std::net::IpAddr;

use http::{HeaderMap, header};

const USER_AGENT_LIMIT: usize = 512;

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address; IPv4 addresses are never written as IPv6.
    pub address: IpAddr,
    /// What it calls itself, cut to 512 characters.
    pub user_agent: Option<String>,
}

impl Client {
    /// The client of a request that came in from `peer` with these headers.
    ///
    /// `X-Forwarded-For` counts only as far as trusted proxies wrote it: read from the right, the first address that
    /// is not a trusted proxy is the client's.
    #[must_use]
    pub fn of(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNetwork]) -> Self {
        let user_agent = headers
            .get(header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .map(|text| text.chars().take(USER_AGENT_LIMIT).collect());
        Self { address: address(peer.to_canonical(), headers, trusted), user_agent }
    }
}

fn address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNetwork]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer;
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<&str> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
    for hop in hops.into_iter().rev() {
        if !is_trusted(client) {
            break;
        }
        let Ok(address) = hop.parse::<IpAddr>() else { break };
        client = address.to_canonical();
    }
    client
}

/// A range of addresses, written `10.0.0.0/8` or as a single address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNetwork {
    address: IpAddr,
    prefix: u32,
}

impl IpNetwork {
    /// Whether the address lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - self.prefix).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for IpNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is not an IP address"))?;
        let widest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => widest,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= widest)
                .ok_or_else(|| format!("the prefix length of {text:?} is not between 0 and {widest}"))?,
        };
        Ok(Self { address, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, forwarded: Option<&str>) -> String {
        let mut headers = HeaderMap::new();
        if let Some(forwarded) = forwarded {
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
        }
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        Client::of(peer.parse().unwrap(), &headers, &trusted).address.to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(client("192.0.2.1", Some("203.0.113.9")), "192.0.2.1");
        assert_eq!(client("10.1.2.3", Some("203.0.113.9")), "203.0.113.9");
        assert_eq!(client("10.1.2.3", None), "10.1.2.3");
    }

    #[test]
    fn a_client_cannot_put_an_address_before_the_proxys() {
        assert_eq!(client("10.1.2.3", Some("1.1.1.1, 203.0.113.9, 10.9.9.9")), "203.0.113.9");
        assert_eq!(client("10.1.2.3", Some("1.1.1.1, nonsense")), "10.1.2.3");
    }

    #[test]
    fn mapped_addresses_are_the_addresses_they_map() {
        assert_eq!(client("::ffff:10.1.2.3", Some("::ffff:203.0.113.9")), "203.0.113.9");
    }

    #[test]
    fn networks_are_read_or_refused() {
        assert!("0.0.0.0/0".parse::<IpNetwork>().unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<IpNetwork>().is_err());
        assert!("localhost".parse::<IpNetwork>().is_err());
    }
}
