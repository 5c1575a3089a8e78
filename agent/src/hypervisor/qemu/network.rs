//! The user-mode network of an isolated guest, from its host's side: ports of the host's loopback address that lead to the guest.
//!
//! QMP has no commands for it, so that people's are given and their answers read.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::json;

use super::{Machine, MachineError};

const PEOPLE: &str = "human-monitor-command";

impl Machine {
    /// Has a port of this host lead to one of the guest, by its nic of that place, until QEMU ends. Any program of this host may
    /// use it.
    ///
    /// # Errors
    /// [`MachineError::NotForwarded`], and others.
    pub async fn forward(&self, nic: usize, guest: SocketAddrV4) -> Result<SocketAddrV4, MachineError> {
        let said = self.as_people(&format!("hostfwd_add net-{nic} tcp:{}:0-{guest}", Ipv4Addr::LOCALHOST)).await?;
        let table = self.as_people("info usernet").await?;
        match connections(&table).find(|one| one.state == "HOST_FORWARD" && one.guest == guest) {
            Some(made) if said.trim().is_empty() => Ok(made.host),
            _ => Err(MachineError::NotForwarded { guest, said: said.trim().to_owned() }),
        }
    }

    /// Whether the guest has accepted a connection to this port of it that is still there. QEMU takes one in before it asks the
    /// guest, so that whoever connects cannot tell.
    ///
    /// # Errors
    /// [`MachineError`].
    pub async fn has_accepted(&self, guest: SocketAddrV4) -> Result<bool, MachineError> {
        let table = self.as_people("info usernet").await?;
        Ok(connections(&table).any(|one| one.guest == guest && matches!(one.state, "ESTABLISHED" | "CLOSE_WAIT")))
    }

    async fn as_people(&self, line: &str) -> Result<String, MachineError> {
        self.ask(PEOPLE, json!({ "command-line": line })).await
    }
}

/// A row of QEMU's table: a port that leads to the guest, or a connection by it.
#[derive(Debug, PartialEq, Eq)]
struct Connection<'a> {
    state: &'a str,
    host: SocketAddrV4,
    guest: SocketAddrV4,
}

/// Those of TCP that begin at the host.
fn connections(table: &str) -> impl Iterator<Item = Connection<'_>> {
    table.lines().filter_map(|line| {
        let (state, rest) = line.trim_start().strip_prefix("TCP[")?.split_once(']')?;
        let mut columns = rest.split_whitespace().skip(1);
        let mut end = || Some(SocketAddrV4::new(columns.next()?.parse().ok()?, columns.next()?.parse().ok()?));
        Some(Connection { state, host: end()?, guest: end()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_and_what_is_none_of_it_is_passed_over() {
        let table = "Hub -1 (net-0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n\
                       TCP[HOST_FORWARD]   8       127.0.0.1 40999        10.9.0.5    81     0     0\r\n\
                       TCP[ESTABLISHED]  12       127.0.0.1 40999        10.9.0.5    81     0     0\r\n\
                       UDP[236 sec]      13       127.0.0.1     1        10.9.0.5    53     0     0\r\n  TCP[SYN_SENT]\r\n";
        let ends = ("127.0.0.1:40999".parse().expect("an address"), "10.9.0.5:81".parse().expect("an address"));
        let wanted = ["HOST_FORWARD", "ESTABLISHED"].map(|state| Connection { state, host: ends.0, guest: ends.1 });
        assert_eq!(connections(table).collect::<Vec<_>>(), wanted);
    }
}
