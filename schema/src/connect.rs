//! What a sandboxed command may connect to: `HOST:PORT`, or an address or network with a port or without one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest name of a host (RFC 1035).
const MAX_NAME_BYTES: usize = 253;

/// Where to, by TCP or UDP.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct ConnectTarget {
    /// Whom.
    pub host: ConnectHost,
    /// Which port; `None` for all of them.
    pub port: Option<u16>,
}

/// Whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ConnectHost {
    /// A name: the addresses that the node finds for it before the command starts.
    Name(String),
    /// All addresses that begin with so many bits.
    Network(IpAddr, u8),
}

/// This names nothing to connect to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is nothing to connect to: {reason} (HOST:PORT, 10.0.0.0/8, 10.0.0.1:443, [2001:db8::/32]:443)"
)]
pub struct BadTarget {
    text: String,
    reason: &'static str,
}

impl FromStr for ConnectTarget {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, BadTarget> {
        parse(text).map_err(|reason| BadTarget { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<ConnectTarget, &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or("there is no `]`")?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or("behind `]` comes a port, or nothing")?),
            };
            if !host.contains(':') {
                return Err("in brackets stands an IPv6 address");
            }
            (host, port)
        }
        // An IPv6 address without a port.
        None if text.matches(':').count() > 1 => (text, None),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map(|port| {
        port.parse().ok().filter(|port| *port != 0).ok_or("the port is no number from 1 to 65535")
    });
    let port = port.transpose()?;
    let host = match network(host)? {
        Some(network) => network,
        None if port.is_none() => return Err("a name needs a port"),
        None => ConnectHost::Name(name(host)?),
    };
    Ok(ConnectTarget { host, port })
}

/// `None` if it is a name.
fn network(text: &str) -> Result<Option<ConnectHost>, &'static str> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return if bits.is_some() || text.contains(':') { Err("it is no address") } else { Ok(None) };
    };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.map_or(Some(most), |bits| bits.parse().ok().filter(|bits| *bits <= most));
    Ok(Some(ConnectHost::Network(address, bits.ok_or("so many bits no address has")?)))
}

fn name(text: &str) -> Result<String, &'static str> {
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > MAX_NAME_BYTES || !text.bytes().all(is_of_names) {
        return Err("it is no name of a host");
    }
    Ok(text.to_ascii_lowercase())
}

impl fmt::Display for ConnectTarget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = match &self.host {
            ConnectHost::Name(name) => name.clone(),
            ConnectHost::Network(address @ IpAddr::V4(_), 32) => address.to_string(),
            ConnectHost::Network(address @ IpAddr::V6(_), 128) => address.to_string(),
            ConnectHost::Network(address, bits) => format!("{address}/{bits}"),
        };
        match self.port {
            Some(port) if host.contains(':') => write!(out, "[{host}]:{port}"),
            Some(port) => write!(out, "{host}:{port}"),
            None => out.write_str(&host),
        }
    }
}

impl TryFrom<String> for ConnectTarget {
    type Error = BadTarget;

    fn try_from(text: String) -> Result<Self, BadTarget> {
        text.parse()
    }
}

impl From<ConnectTarget> for String {
    fn from(target: ConnectTarget) -> Self {
        target.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_written_as_they_are_read() {
        for text in [
            "example.org:443",
            "10.0.0.0/8",
            "10.0.0.0/8:53",
            "127.0.0.1:80",
            "192.0.2.1",
            "2001:db8::/32",
            "::1",
            "[::1]:80",
            "[2001:db8::/32]:443",
        ] {
            let target: ConnectTarget = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
            assert_eq!(serde_json::to_value(&target).unwrap(), text);
        }
        let target: ConnectTarget = "Example.ORG:443".parse().unwrap();
        assert_eq!(target, ConnectTarget { host: ConnectHost::Name("example.org".into()), port: Some(443) });
        assert_eq!("0.0.0.0/0".parse::<ConnectTarget>().unwrap().port, None);
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "",
            ":",
            ":80",
            "host",
            "host:",
            "host:0",
            "host:65536",
            "host:http",
            "a b:1",
            "10.0.0.0/33",
            "10.0.0.0/",
            "/8",
            "host/8:1",
            "[::1",
            "[::1]80",
            "[::1]:",
            "[host]:80",
            "::1/129",
            "1:2:3",
            "*:80",
        ] {
            assert!(text.parse::<ConnectTarget>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<ConnectTarget>("\"host\"").is_err());
    }
}
