//! Tap devices: what connects a guest's nic to a bridge of its host.
//!
//! They are made with `ip` from iproute2 before QEMU starts, which then needs no right to make any.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sterna_shared::id::{BridgeName, VmId};
use tokio::process::Command;
use tokio::time::timeout;

/// How long `ip` may take.
const IP_WAIT_MAX: Duration = Duration::from_secs(10);
/// The most that an error repeats of what `ip` said, in characters.
const IP_WORDS_MAX: usize = 400;
/// Digits of the VM's id in a device's name. A version 7 UUID ends in random bits: 40 of them tell the VMs of a host
/// apart, and leave room for the rest within the 15 bytes that Linux allows.
const ID_DIGITS: usize = 10;

/// The name of the tap device of a VM's nic: the same on every host, and after every restart.
#[must_use]
pub fn tap_name(vm: VmId, nic: u8) -> String {
    let id = vm.uuid().as_simple().to_string();
    format!("st{}{nic:02x}", &id[id.len() - ID_DIGITS..])
}

/// Makes the tap device `name`, puts it on `bridge` and takes it up. One that is there already is put there.
///
/// # Errors
/// [`TapError`].
pub async fn create(name: &str, bridge: &BridgeName) -> Result<(), TapError> {
    if !Path::new("/sys/class/net").join(bridge.as_str()).join("bridge").is_dir() {
        return Err(TapError::NoBridge { bridge: bridge.clone() });
    }
    match kind(name) {
        Kind::Tap => {}
        Kind::Other => return Err(TapError::Taken { name: name.to_owned() }),
        Kind::Absent => ip(&["tuntap", "add", "dev", name, "mode", "tap"]).await?,
    }
    ip(&["link", "set", "dev", name, "master", bridge.as_str(), "up"]).await
}

/// Removes the tap device `name`. It being gone already is no error.
///
/// # Errors
/// [`TapError`].
pub async fn delete(name: &str) -> Result<(), TapError> {
    match kind(name) {
        Kind::Absent => Ok(()),
        Kind::Other => Err(TapError::Taken { name: name.to_owned() }),
        Kind::Tap => ip(&["link", "delete", "dev", name]).await,
    }
}

enum Kind {
    Absent,
    Tap,
    Other,
}

fn kind(name: &str) -> Kind {
    let device = Path::new("/sys/class/net").join(name);
    // Only tun and tap devices have flags.
    match (device.join("tun_flags").exists(), device.exists()) {
        (true, _) => Kind::Tap,
        (false, true) => Kind::Other,
        (false, false) => Kind::Absent,
    }
}

async fn ip(arguments: &[&str]) -> Result<(), TapError> {
    let failed = |words: String| TapError::Ip { command: format!("ip {}", arguments.join(" ")), words };
    let run = Command::new("ip").args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(IP_WAIT_MAX, run)
        .await
        .map_err(|_| failed(format!("it did not end within {IP_WAIT_MAX:?}")))?
        .map_err(|source| TapError::NoIp { source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().chars().take(IP_WORDS_MAX).collect()))
}

/// Why a tap device could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The host has no such bridge.
    #[error(
        "this host has no bridge {bridge}; make it (ip link add {bridge} type bridge), or place the nic on another"
    )]
    NoBridge {
        /// Its name.
        bridge: BridgeName,
    },
    /// Something else has the name.
    #[error("the network device {name} is no tap device, and has the name of one of Sterna's; rename it")]
    Taken {
        /// The name.
        name: String,
    },
    /// `ip` said no.
    #[error("`{command}` failed: {words}; the agent needs CAP_NET_ADMIN and /dev/net/tun")]
    Ip {
        /// The command.
        command: String,
        /// What it said.
        words: String,
    },
    /// There is no `ip`.
    #[error("cannot run ip; install iproute2")]
    NoIp {
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(text: &str) -> VmId {
        text.parse().expect("an id")
    }

    #[test]
    fn names_fit_linux_and_tell_nics_apart() {
        let first = vm("0197c0de-0000-7000-8000-0123456789ab");
        assert_eq!(tap_name(first, 0), "st23456789ab00");
        assert_eq!(tap_name(first, 15), "st23456789ab0f");
        assert_ne!(tap_name(first, 0), tap_name(vm("0197c0de-0000-7000-8000-0123456789ac"), 0));
        assert!(tap_name(first, u8::MAX).len() <= 15);
    }

    #[tokio::test]
    async fn a_missing_bridge_is_named_with_what_to_do() {
        let error = create("st0000000000ff", &"no-such-br".parse().expect("a name")).await.expect_err("no bridge");
        let text = error.to_string();
        assert!(text.contains("no-such-br") && text.contains("ip link add"), "{text}");
        delete("st0000000000ff").await.expect("gone already");
        assert!(matches!(delete("lo").await, Err(TapError::Taken { .. })));
    }
}
