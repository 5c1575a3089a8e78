//! What the kernel's command line asks for; the table is in the crate's documentation.

use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::protocol::DEFAULT_PORT;

/// Everything that was asked for, with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) seed: u64,
    pub(crate) memory_mib: u64,
    pub(crate) rewrite_mib: u64,
    pub(crate) disks: usize,
    pub(crate) records: u64,
    pub(crate) continues: bool,
    pub(crate) lockstep: bool,
    pub(crate) agent: bool,
    pub(crate) freeze_ms: u64,
    pub(crate) root: Option<String>,
    pub(crate) network: Option<Network>,
    pub(crate) port: u16,
}

/// The address of `eth0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// A parameter that this program does not know or cannot read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("unknown parameter witness.{0}: see the list in the documentation of sterna-witness")]
    Unknown(String),
    #[error("witness.{name}={value}: expected {expected}")]
    Value { name: String, value: String, expected: &'static str },
    #[error("witness.gateway is given without witness.ip")]
    GatewayAlone,
}

impl Config {
    pub(crate) fn from_command_line(line: &str) -> Result<Self, ConfigError> {
        let mut config = Self {
            seed: 1,
            memory_mib: 0,
            rewrite_mib: 0,
            disks: 0,
            records: 20,
            continues: false,
            lockstep: false,
            agent: false,
            freeze_ms: 0,
            root: None,
            network: None,
            port: DEFAULT_PORT,
        };
        let mut gateway = None;
        let parameters = line.split_whitespace().filter_map(|word| word.strip_prefix("witness.")?.split_once('='));
        for (name, value) in parameters {
            match name {
                "seed" => config.seed = parse(name, value, "a number")?,
                "memory" => config.memory_mib = parse(name, value, "MiB")?,
                "rewrite" => config.rewrite_mib = parse(name, value, "MiB per second")?,
                "disks" => config.disks = parse(name, value, "a number of disks")?,
                "records" => config.records = parse(name, value, "records per second")?,
                "continue" => config.continues = parse::<u8>(name, value, "0 or 1")? != 0,
                "lockstep" => config.lockstep = parse::<u8>(name, value, "0 or 1")? != 0,
                "agent" => config.agent = parse::<u8>(name, value, "0 or 1")? != 0,
                "freeze" => config.freeze_ms = parse(name, value, "milliseconds")?,
                "port" => config.port = parse(name, value, "a port")?,
                "root" => config.root = Some(value.to_owned()),
                "gateway" => gateway = Some(parse(name, value, "an address such as 10.0.0.1")?),
                "ip" => {
                    const EXPECTED: &str = "an address and prefix such as 10.0.0.2/24";
                    let (address, prefix) = value.split_once('/').unwrap_or((value, ""));
                    let prefix = parse(name, prefix, EXPECTED)?;
                    config.network = Some(Network { address: parse(name, address, EXPECTED)?, prefix, gateway: None });
                }
                _ => return Err(ConfigError::Unknown(name.to_owned())),
            }
        }
        match (&mut config.network, gateway) {
            (Some(network), gateway) => network.gateway = gateway,
            (None, Some(_)) => return Err(ConfigError::GatewayAlone),
            (None, None) => {}
        }
        Ok(config)
    }
}

fn parse<T: FromStr>(name: &str, value: &str, expected: &'static str) -> Result<T, ConfigError> {
    value.parse().map_err(|_| ConfigError::Value { name: name.to_owned(), value: value.to_owned(), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_read_and_the_kernels_own_words_are_passed_over() {
        let line = "console=ttyS0 panic=-1 witness.seed=9 witness.memory=64 witness.disks=2 witness.ip=10.1.2.3/24 witness.gateway=10.1.2.1\n";
        let config = Config::from_command_line(line).expect("a good line");
        assert_eq!((config.seed, config.memory_mib, config.disks, config.records), (9, 64, 2, 20));
        let network = config.network.expect("an address is given");
        assert_eq!((network.address, network.prefix), (Ipv4Addr::new(10, 1, 2, 3), 24));
        assert_eq!(network.gateway, Some(Ipv4Addr::new(10, 1, 2, 1)));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (line, named) in [
            ("witness.disk=1", "witness.disk"),
            ("witness.seed=x", "witness.seed=x"),
            ("witness.ip=10.0.0.1", "witness.ip"),
            ("witness.gateway=10.0.0.1", "without witness.ip"),
        ] {
            let error = Config::from_command_line(line).expect_err("a bad line").to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
