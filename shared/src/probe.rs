//! What a host measures for the checks of a move: facts, each by itself, and in words why one is missing.
//!
//! Nothing is changed by a probe and nothing of it is kept. It is asked of the source's agent, and, for its clock alone, of
//! the target's; [`Forecast`](crate::job::Forecast) makes an outlook of what comes back.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::host::Certificate;
use crate::id::{DiskName, HostId, JobId, Token};
use crate::time::Timestamp;
use crate::units::{Bandwidth, ByteCount};

/// The shortest time that one measurement is given, in milliseconds: QEMU measures no shorter.
pub const PROBE_TIME_MS_MIN: u32 = 50;
/// The longest, in milliseconds: a check is to be over in two seconds.
pub const PROBE_TIME_MS_MAX: u32 = 500;
/// The most bytes that one probe sends. The target takes twice as many, and ends a session that sends more.
pub const PROBE_BYTES_MAX: u64 = 1 << 30;
/// The most addresses of a peer that are tried; what is listed behind them is passed over.
pub const PROBE_ADDRESSES_MAX: usize = 8;
/// The most bytes of text that says why something is missing.
pub const PROBE_TEXT_LENGTH_MAX: usize = 512;

/// The other host of a probe, which was told to expect it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbePeer {
    /// The host.
    pub host: HostId,
    /// Where its data-plane port is reached, best first. The first [`PROBE_ADDRESSES_MAX`] are tried.
    pub addresses: Vec<SocketAddr>,
    /// The probe's own id, drawn like a job's. There is no such job.
    pub job: JobId,
    /// What admits the probe's lanes at that host.
    pub token: Token,
    /// Data lanes to send over, held to 1 to 16.
    pub lanes: u8,
}

/// A measurement, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Measured<T> {
    /// It was measured.
    Known(T),
    /// It was not.
    Unknown {
        /// Why, for people; at most [`PROBE_TEXT_LENGTH_MAX`] bytes.
        why: String,
    },
}

impl<T> Measured<T> {
    /// There is no measurement, and this is why. The text is held to [`PROBE_TEXT_LENGTH_MAX`].
    #[must_use]
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { why: bounded(why.into()) }
    }

    /// What was measured, if it was.
    #[must_use]
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown { .. } => None,
        }
    }
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Measured<T> {
    fn from(outcome: Result<T, E>) -> Self {
        match outcome {
            Ok(value) => Self::Known(value),
            Err(why) => Self::unknown(why.to_string()),
        }
    }
}

/// What an agent has measured. Each part stands alone: one that failed says so, and the others are there all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProbeReport {
    /// The agent's wall clock as the report was finished: what a difference between two hosts' clocks is told by. The asker
    /// adds half of what the answer may have taken.
    pub at: Timestamp,
    /// The way to the peer; none where no peer was named.
    pub path: Option<PathReport>,
    /// The guest; none where no VM was named.
    pub guest: Option<GuestReport>,
}

/// The way to another host's data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PathReport {
    /// What came of each address, in the order given.
    pub addresses: Vec<AddressReport>,
    /// How fast the lanes together get through, in bytes a second: TLS and frames included, counted by what the peer has
    /// acknowledged, no matter what is written to disks there.
    pub throughput: Measured<Bandwidth>,
    /// From a message to its acknowledgement, in microseconds, while nothing else is under way; the best of a few.
    pub round_trip_us: Measured<u64>,
}

/// What came of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AddressReport {
    /// The address.
    pub address: SocketAddr,
    /// What came of it, for programs.
    pub outcome: AddressOutcome,
    /// The same in words, with what to do where it failed; at most [`PROBE_TEXT_LENGTH_MAX`] bytes.
    pub text: String,
    /// The certificate that was shown there, where it was accepted. The text names its host.
    pub certificate: Option<Certificate>,
}

impl AddressReport {
    /// What came of an address that did not let us in. The text is held to [`PROBE_TEXT_LENGTH_MAX`].
    #[must_use]
    pub fn failed(address: SocketAddr, outcome: AddressOutcome, text: impl Into<String>) -> Self {
        Self { address, outcome, text: bounded(text.into()), certificate: None }
    }
}

/// What came of an address, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AddressOutcome {
    /// The host meant answers there, and both ends accept each other's certificate.
    Reached,
    /// Nothing listens there.
    Refused,
    /// No answer came in time.
    TimedOut,
    /// One end does not accept the other's certificate, or another host answers.
    CertificateNotAccepted,
    /// Something else is wrong: the text says what. Also what a newer agent knows.
    #[serde(other)]
    Failed,
}

/// A guest, as far as a forecast needs it. All of it is unknown while no QEMU runs, and rates while its vCPUs do not execute
/// are zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct GuestReport {
    /// Bytes of memory that the guest has.
    pub memory_total: Measured<ByteCount>,
    /// Bytes of them that it has ever touched, as the host's kernel counts them: a little more, by what QEMU needs itself.
    /// What was never touched costs next to nothing to send.
    pub memory_used: Measured<ByteCount>,
    /// Bytes of memory dirtied, a second; a page that is written twice within the measurement counts once. QEMU samples
    /// pages, and tells whole MiB a second.
    pub memory_dirty_rate: Measured<Bandwidth>,
    /// Bytes written to all disks, a second.
    pub disk_write_rate: Measured<Bandwidth>,
    /// What its disks take, by name.
    pub disks: Measured<Vec<DiskUse>>,
}

impl GuestReport {
    /// A report in which all is unknown for one reason.
    #[must_use]
    pub fn unknown(why: &str) -> Self {
        Self {
            memory_total: Measured::unknown(why),
            memory_used: Measured::unknown(why),
            memory_dirty_rate: Measured::unknown(why),
            disk_write_rate: Measured::unknown(why),
            disks: Measured::unknown(why),
        }
    }
}

/// What a disk takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DiskUse {
    /// The disk.
    pub disk: DiskName,
    /// Its size as the guest sees it, in bytes.
    pub size: ByteCount,
    /// Bytes that its image takes of its pool; none where the pool does not tell, as a volume group does not.
    pub allocated: Option<ByteCount>,
}

/// Cuts a text at [`PROBE_TEXT_LENGTH_MAX`] bytes or a little before, between two characters.
fn bounded(mut text: String) -> String {
    let mut length = text.len().min(PROBE_TEXT_LENGTH_MAX);
    while !text.is_char_boundary(length) {
        length -= 1;
    }
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{AgentReply, AgentRequest, decode, encode};
    use crate::id::VmId;

    #[test]
    fn a_probe_and_its_report_cross_the_bus() {
        let peer = ProbePeer {
            host: "beta".parse().expect("a host"),
            addresses: vec!["192.0.2.1:7411".parse().expect("an address")],
            job: JobId::from_uuid(uuid::Uuid::from_u128(1)),
            token: Token::from_bytes([255; 32]),
            lanes: 4,
        };
        let (job, token, source) = (peer.job, peer.token.clone(), "alpha".parse().expect("a host"));
        let vm = Some(VmId::from_uuid(uuid::Uuid::from_u128(2)));
        for request in [
            AgentRequest::ProbeExpect { job, source, token },
            AgentRequest::Probe { vm, peer: Some(peer), time_ms: 400 },
            AgentRequest::Probe { vm: None, peer: None, time_ms: 0 },
        ] {
            let bytes = encode("agent_request", &request).expect("it encodes");
            assert_eq!(decode::<AgentRequest>("agent_request", &bytes).expect("it decodes"), request);
        }
        let address =
            AddressReport::failed("[2001:db8::1]:1".parse().expect("an address"), AddressOutcome::Refused, "no");
        let disk = DiskUse { disk: "root".parse().expect("a name"), size: ByteCount(2), allocated: None };
        let report = ProbeReport {
            at: Timestamp::from_unix_microseconds(1),
            path: Some(PathReport {
                addresses: vec![address],
                throughput: Measured::Known(Bandwidth(u64::MAX)),
                round_trip_us: Measured::unknown("nobody was there"),
            }),
            guest: Some(GuestReport { disks: Measured::Known(vec![disk]), ..GuestReport::unknown("it is stopped") }),
        };
        let reply = AgentReply::Probed { report: Box::new(report) };
        let bytes = encode("agent_reply", &reply).expect("it encodes");
        assert_eq!(decode::<AgentReply>("agent_reply", &bytes).expect("it decodes"), reply);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let Measured::Unknown { why } = Measured::<u64>::unknown("é".repeat(PROBE_TEXT_LENGTH_MAX)) else {
            panic!("it is unknown")
        };
        assert_eq!(why.len(), PROBE_TEXT_LENGTH_MAX);
        assert_eq!(bounded(format!("a{why}")).len(), PROBE_TEXT_LENGTH_MAX - 1);
        let outcome: AddressOutcome =
            decode("outcome", &encode("outcome", &"of_a_newer_agent").expect("it encodes")).expect("it decodes");
        assert_eq!(outcome, AddressOutcome::Failed);
    }
}
