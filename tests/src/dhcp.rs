//! A DHCP server for the guests on one host's `lan`, of as much of RFC 2131 as gives them an address.
//!
//! Who asks is known by the identifier that it sends, and by its MAC where it sends none. So two guests that call themselves alike are given
//! one address, as by any server.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::namespace::{Host, Link};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const PACKET_BYTES_MAX: usize = 1500;
/// What a message has before its options; the last of it says that options follow.
const HEAD: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The shortest message that every client takes.
const ANSWER_BYTES_MIN: usize = 300;
/// Options: what they are called by.
const NETMASK: u8 = 1;
const LEASE: u8 = 51;
const KIND: u8 = 53;
const SERVER: u8 = 54;
const IDENTIFIER: u8 = 61;
const END: u8 = 255;
const MASK: [u8; 4] = [255, 255, 255, 0];
const LEASE_SECONDS: u32 = 3600;
/// Leases that nobody has asked for yet; later ones are forgotten.
const LEASES_MAX: usize = 64;

/// What a guest was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its address from now on.
    pub address: Ipv4Addr,
    /// The address of its interface.
    pub mac: String,
    /// What it calls itself, in the same form, with the kind of that in front; nothing where it does not say.
    pub identifier: String,
}

/// The server, which is there until it is dropped.
#[derive(Debug)]
pub struct Dhcp {
    leases: mpsc::Receiver<Lease>,
    task: JoinHandle<io::Result<()>>,
}

impl Dhcp {
    /// Gives addresses from this one on.
    pub fn serve(host: &Host, first: Ipv4Addr) -> anyhow::Result<Self> {
        let socket = host.inside(|| {
            let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVER_PORT))?;
            socket.set_broadcast(true)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        let socket = UdpSocket::from_std(socket.context("cannot listen for guests that want an address")?)?;
        let server = Server { own: host.address(Link::Lan), first, known: Vec::new() };
        let (told, leases) = mpsc::channel(LEASES_MAX);
        Ok(Self { leases, task: tokio::spawn(server.run(socket, told)) })
    }

    /// The next guest that is given an address.
    pub async fn lease(&mut self, wait: Duration) -> anyhow::Result<Lease> {
        let lease = tokio::time::timeout(wait, self.leases.recv()).await.context("no guest has taken an address")?;
        lease.context("the DHCP server has failed")
    }
}

impl Drop for Dhcp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who was given the first address, the second, and so on.
struct Server {
    own: Ipv4Addr,
    first: Ipv4Addr,
    known: Vec<Vec<u8>>,
}

impl Server {
    async fn run(mut self, socket: UdpSocket, told: mpsc::Sender<Lease>) -> io::Result<()> {
        let [a, b, c, _] = self.own.octets();
        // By broadcast always: a guest without an address cannot be reached otherwise.
        let everybody = SocketAddrV4::new(Ipv4Addr::new(a, b, c, 255), CLIENT_PORT);
        let mut packet = [0; PACKET_BYTES_MAX];
        loop {
            let (length, _) = socket.recv_from(&mut packet).await?;
            let Some(question) = Question::parse(&packet[..length]) else { continue };
            let Some(kind) = question.kind.answer() else { continue };
            let address = self.address_of(&question);
            socket.send_to(&question.answered(kind, address, self.own), everybody).await?;
            if kind == Kind::ACK {
                let identifier = shown(question.identifier.as_deref().unwrap_or_default());
                let _ = told.try_send(Lease { address, mac: shown(&question.mac()), identifier });
            }
        }
    }

    fn address_of(&mut self, question: &Question) -> Ipv4Addr {
        let who = question.identifier.clone().unwrap_or_else(|| question.mac().to_vec());
        let index = self.known.iter().position(|known| *known == who).unwrap_or_else(|| {
            self.known.push(who);
            self.known.len() - 1
        });
        Ipv4Addr::from_bits(self.first.to_bits().saturating_add(u32::try_from(index).unwrap_or(u32::MAX)))
    }
}

/// What kind of message one is, as option 53 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind(u8);

impl Kind {
    const DISCOVER: Self = Self(1);
    const OFFER: Self = Self(2);
    const REQUEST: Self = Self(3);
    const ACK: Self = Self(5);

    /// What it is answered by, where it is.
    fn answer(self) -> Option<Self> {
        match self {
            Self::DISCOVER => Some(Self::OFFER),
            Self::REQUEST => Some(Self::ACK),
            _ => None,
        }
    }
}

/// What a client sends.
#[derive(Debug)]
struct Question {
    head: [u8; HEAD],
    kind: Kind,
    identifier: Option<Vec<u8>>,
}

impl Question {
    fn parse(packet: &[u8]) -> Option<Self> {
        const REQUEST: u8 = 1;
        const PAD: u8 = 0;
        let (head, mut options) = packet.split_first_chunk::<HEAD>()?;
        if head[0] != REQUEST || !head.ends_with(&COOKIE) {
            return None;
        }
        let (mut kind, mut identifier) = (None, None);
        while let [code, rest @ ..] = options {
            options = rest;
            match *code {
                PAD => continue,
                END => break,
                _ => {}
            }
            let (length, rest) = rest.split_first()?;
            let (value, rest) = rest.split_at_checked(usize::from(*length))?;
            options = rest;
            match *code {
                KIND => kind = value.first().map(|kind| Kind(*kind)),
                IDENTIFIER => identifier = Some(value.to_vec()),
                _ => {}
            }
        }
        Some(Self { head: *head, kind: kind?, identifier })
    }

    fn mac(&self) -> [u8; 6] {
        std::array::from_fn(|index| self.head[28 + index])
    }

    /// The same with an address in it, for as long as a test may take.
    fn answered(&self, kind: Kind, address: Ipv4Addr, server: Ipv4Addr) -> Vec<u8> {
        const REPLY: u8 = 2;
        let mut answer = self.head.to_vec();
        answer[0] = REPLY;
        answer[16..20].copy_from_slice(&address.octets());
        let options: [(u8, &[u8]); 4] =
            [(KIND, &[kind.0]), (SERVER, &server.octets()), (LEASE, &LEASE_SECONDS.to_be_bytes()), (NETMASK, &MASK)];
        for (code, value) in options {
            answer.extend([code, u8::try_from(value.len()).unwrap_or_default()]);
            answer.extend(value);
        }
        answer.push(END);
        answer.resize(answer.len().max(ANSWER_BYTES_MIN), 0);
        answer
    }
}

/// Bytes as MACs are written.
fn shown(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const FIRST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);

    /// A DISCOVER of a client with that last byte of its MAC.
    fn discover(mac: u8, identifier: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; HEAD];
        packet[0] = 1;
        packet[28..34].copy_from_slice(&[0x52, 0x54, 0, 0, 0, mac]);
        packet[236..].copy_from_slice(&COOKIE);
        packet.extend([0, KIND, 1, Kind::DISCOVER.0]);
        if !identifier.is_empty() {
            packet.extend([IDENTIFIER, u8::try_from(identifier.len()).expect("short")]);
            packet.extend(identifier);
        }
        packet.push(END);
        packet
    }

    #[test]
    fn a_question_is_read_and_answered() {
        let question = Question::parse(&discover(7, &[1, 2])).expect("a question");
        assert_eq!((question.kind, question.identifier.as_deref()), (Kind::DISCOVER, Some(&[1, 2][..])));
        assert_eq!(question.mac(), [0x52, 0x54, 0, 0, 0, 7]);
        let answer = question.answered(Kind::OFFER, FIRST, SERVER_ADDRESS);
        assert_eq!((answer.len(), answer[0], &answer[16..20]), (ANSWER_BYTES_MIN, 2, &[192, 0, 2, 10][..]));
        assert_eq!(answer[HEAD..HEAD + 9], [KIND, 1, 2, SERVER, 4, 192, 0, 2, 1]);
        assert!(Question::parse(&answer).is_none(), "an answer is no question");
    }

    #[test]
    fn what_is_cut_is_no_question() {
        let whole = discover(7, &[1, 2]);
        for length in 0..whole.len() - 5 {
            assert!(Question::parse(&whole[..length]).is_none(), "{length} bytes");
        }
    }

    #[test]
    fn who_calls_itself_alike_is_given_one_address() {
        let mut server = Server { own: SERVER_ADDRESS, first: FIRST, known: Vec::new() };
        let mut given = |mac, identifier: &[u8]| {
            server.address_of(&Question::parse(&discover(mac, identifier)).expect("a question")).octets()[3]
        };
        assert_eq!(
            [given(1, b"one"), given(2, b"one"), given(2, b""), given(3, b""), given(2, b"")],
            [10, 10, 11, 12, 11]
        );
    }
}
