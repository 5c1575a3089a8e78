//! Hosts on one machine: network namespaces joined by two bridges.
//!
//! ```text
//!   namespace …-a                      namespace …-net                  namespace …-client
//!   ┌───────────────────────┐          ┌──────────────┐                ┌────────────────────┐
//!   │ tap0 ─ br0 ─ lan0 ────┼──────────┼ a-lan        │      lan       │                    │
//!   │        10.77.0.1      │          │   └─ lan ────┼────────────────┼ lan0 ─ br0         │
//!   │        data0 ─────────┼──────────┼ a-data       │     data       │        10.77.0.3   │
//!   │        10.78.0.1      │          │   └─ data ───┼────────────────┼ data0 10.78.0.3    │
//!   └───────────────────────┘          └──────────────┘                └────────────────────┘
//! ```
//!
//! Guests' taps join `br0`, so a guest is on the same network before and after a move, and a client reaches it all the
//! while. The second network, `data`, gives every host a second address. A link is cut in the middle: both ends stay
//! up, nobody is told, packets are gone, as with a switch that fails.
//!
//! Names begin with `st<pid>x<n>`. What a test leaves behind that was killed is found by the pid and swept when the
//! next network is made. All of this needs root.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Hosts in one network; guests' addresses begin above.
const HOSTS_MAX: usize = 90;
/// The last byte of the first address that [`Network::guest_address`] gives.
const GUEST_FIRST: u8 = 100;
/// The prefix of both networks' addresses.
pub const PREFIX: u8 = 24;
/// How much a shaped link lets through at once.
const SHAPE_BURST: &str = "128kb";
/// How long a packet may wait in a shaped link before it is dropped.
const SHAPE_LATENCY: &str = "50ms";

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// One of a host's two links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Where guests and clients are.
    Lan,
    /// Where hosts have their second address.
    Data,
}

/// Two bridges in a namespace of their own, and the hosts joined to them. Dropping it takes everything away, and ends
/// the processes that still run inside.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    hosts: Vec<String>,
    guests: u8,
}

/// A namespace that stands for a machine. The namespace lives as long as its [`Network`].
#[derive(Debug, Clone)]
pub struct Host {
    name: String,
    namespace: String,
    hub: String,
    number: u8,
}

impl Link {
    const ALL: [Self; 2] = [Self::Lan, Self::Data];

    fn name(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Data => "data",
        }
    }

    fn network(self) -> u8 {
        match self {
            Self::Lan => 77,
            Self::Data => 78,
        }
    }
}

impl Network {
    /// Makes the bridges, after sweeping what dead tests left.
    pub fn new() -> anyhow::Result<Self> {
        sweep()?;
        let prefix = format!("st{}x{}", std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
        let network = Self { prefix, hosts: Vec::new(), guests: 0 };
        let hub = network.hub();
        add_namespace(&hub)?;
        for link in Link::ALL {
            add_bridge(&hub, link.name())?;
        }
        Ok(network)
    }

    /// Adds a host (or a client, which is the same). `name` is a short word of its own.
    pub fn host(&mut self, name: &str) -> anyhow::Result<Host> {
        // "a-data" must be a valid interface name of at most 15 bytes.
        if name.is_empty() || name.len() > 10 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            bail!("{name:?}: a host's name has 1 to 10 letters and digits");
        }
        if self.hosts.len() == HOSTS_MAX || self.hosts.iter().any(|host| host == name) {
            bail!("{name:?} is there already, or there are {HOSTS_MAX} hosts");
        }
        let number = u8::try_from(self.hosts.len() + 1)?;
        let namespace = format!("{}-{name}", self.prefix);
        // Written down first: a host that is made by half is taken away too.
        self.hosts.push(name.to_owned());
        let host = Host { name: name.to_owned(), namespace, hub: self.hub(), number };
        add_namespace(&host.namespace)?;
        add_bridge(&host.namespace, "br0")?;
        for link in Link::ALL {
            host.connect(link)?;
        }
        Ok(host)
    }

    /// An address on the `lan` that nobody has yet, for a guest.
    pub fn guest_address(&mut self) -> Ipv4Addr {
        let last = GUEST_FIRST.saturating_add(self.guests);
        self.guests += 1;
        Ipv4Addr::new(10, Link::Lan.network(), 0, last)
    }

    /// The namespaces of this network: the one with the bridges, and one a host.
    pub fn namespaces(&self) -> Vec<String> {
        let hosts = self.hosts.iter().map(|host| format!("{}-{host}", self.prefix));
        std::iter::once(self.hub()).chain(hosts).collect()
    }

    fn hub(&self) -> String {
        format!("{}-net", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in self.namespaces() {
            remove_namespace(&namespace);
        }
    }
}

impl Host {
    /// The name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its namespace, as `ip netns` knows it.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its address on one of the networks.
    pub fn address(&self, link: Link) -> Ipv4Addr {
        Ipv4Addr::new(10, link.network(), 0, self.number)
    }

    /// A program that will run inside: a command like any other.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }

    /// Makes a tap on `br0` for a guest.
    pub fn add_tap(&self, name: &str) -> anyhow::Result<()> {
        ip(&format!("-n {} tuntap add dev {name} mode tap", self.namespace))?;
        ip(&format!("-n {} link set dev {name} master br0 up", self.namespace))
    }

    /// Cuts the link: packets are lost both ways, and no end is told.
    pub fn cut(&self, link: Link) -> anyhow::Result<()> {
        self.in_the_middle(link, "nomaster")
    }

    /// Restores the link.
    pub fn restore(&self, link: Link) -> anyhow::Result<()> {
        self.in_the_middle(link, &format!("master {}", link.name()))
    }

    /// Limits the link to so many megabits a second, each way.
    pub fn shape(&self, link: Link, megabits: u32) -> anyhow::Result<()> {
        self.queue(link, "replace", &format!(" tbf rate {megabits}mbit burst {SHAPE_BURST} latency {SHAPE_LATENCY}"))
    }

    /// Takes the limit away.
    pub fn unshape(&self, link: Link) -> anyhow::Result<()> {
        self.queue(link, "del", "")
    }

    /// Connects from inside. The stream is an ordinary one of this process then.
    pub fn connect_tcp(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        self.inside(move || TcpStream::connect_timeout(&address, timeout))
    }

    /// Opens a datagram socket inside, connected to `address`.
    pub fn connect_udp(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.inside(move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(address)?;
            Ok(socket)
        })
    }

    /// Runs `make` on a thread that is inside. A socket stays in the namespace in which it was made.
    pub fn inside<T: Send>(&self, make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        inside(&self.namespace, make)
    }

    fn connect(&self, link: Link) -> anyhow::Result<()> {
        let (ours, theirs) = (format!("{}0", link.name()), self.far_end(link));
        let Self { namespace, hub, .. } = self;
        ip(&format!("-n {namespace} link add {ours} type veth peer name {theirs} netns {hub}"))?;
        ip(&format!("-n {hub} link set dev {theirs} master {} up", link.name()))?;
        let address = format!("{}/{PREFIX}", self.address(link));
        match link {
            Link::Lan => {
                ip(&format!("-n {namespace} link set dev {ours} master br0 up"))?;
                ip(&format!("-n {namespace} addr add {address} dev br0"))
            }
            Link::Data => {
                ip(&format!("-n {namespace} addr add {address} dev {ours}"))?;
                ip(&format!("-n {namespace} link set dev {ours} up"))
            }
        }
    }

    fn far_end(&self, link: Link) -> String {
        format!("{}-{}", self.name, link.name())
    }

    fn in_the_middle(&self, link: Link, change: &str) -> anyhow::Result<()> {
        ip(&format!("-n {} link set dev {} {change}", self.hub, self.far_end(link)))
    }

    fn queue(&self, link: Link, verb: &str, discipline: &str) -> anyhow::Result<()> {
        let ends = [(&self.namespace, format!("{}0", link.name())), (&self.hub, self.far_end(link))];
        ends.iter().try_for_each(|(namespace, device)| {
            run("tc", &format!("-n {namespace} qdisc {verb} dev {device} root{discipline}"))
        })
    }
}

/// Takes away the networks of test processes that are no more.
pub fn sweep() -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(()) };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix("st").and_then(|rest| rest.split_once('x')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_namespace(&name);
        }
    }
    Ok(())
}

fn add_namespace(name: &str) -> anyhow::Result<()> {
    ip(&format!("netns add {name}"))?;
    // Only what a test says is on the wire: no router solicitation, no address detection.
    let written = inside(name, || std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"));
    if let Err(error) = written
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot switch IPv6 off in {name}"));
    }
    ip(&format!("-n {name} link set dev lo up"))
}

fn inside<T: Send>(namespace: &str, make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(Path::new("/run/netns").join(namespace))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            make()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn add_bridge(namespace: &str, name: &str) -> anyhow::Result<()> {
    ip(&format!("-n {namespace} link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"))?;
    ip(&format!("-n {namespace} link set dev {name} up"))
}

/// Ends what runs inside, then removes the namespace and with it its devices. Somebody else may have been quicker.
fn remove_namespace(name: &str) {
    let inside = Command::new("ip").args(["netns", "pids", name]).output();
    let text = inside.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for pid in text.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
        // A thread of this very process may be inside for a moment.
        if pid != rustix::process::getpid() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

fn ip(words: &str) -> anyhow::Result<()> {
    run("ip", words)
}

/// Runs a program whose arguments hold no spaces.
fn run(program: &str, words: &str) -> anyhow::Result<()> {
    let output = Command::new(program)
        .args(words.split_whitespace())
        .output()
        .with_context(|| format!("cannot run {program}: it is of the Debian package iproute2"))?;
    if !output.status.success() {
        bail!("{program} {words}: {} (this needs root)", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
