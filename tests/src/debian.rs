//! A guest that is a real Debian, made by `cargo xtask setup`, and who it says that it is over ssh.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::dhcp::{Dhcp, Lease};
use crate::fleet::Fleet;
use crate::guest_image::GuestImage;
use crate::namespace::Host;
use crate::scenario::eventually;

/// The address that it was configured with; the first that a [`Network`](crate::namespace::Network) gives. Its clones ask for one.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
/// The host name that it was installed with.
pub const HOSTNAME: &str = "original";
/// Its root, which is its one disk.
const DISK: &str = "name = \"root\"\npool = \"fast\"\nformat = \"raw\"\nsize = \"768 MiB\"\n";
/// How long it may take from its start until ssh answers, where two guests are emulated on a busy machine.
const BOOT_WAIT: Duration = Duration::from_secs(150);
const CONNECT_SECONDS: u32 = 20;

/// The files that it is made of.
#[derive(Debug)]
struct Files {
    disk: PathBuf,
    key: PathBuf,
}

impl Files {
    fn find() -> anyhow::Result<Self> {
        let image = GuestImage::find()?;
        let folder = image.kernel.parent().context("the kernel is in a folder")?.join("debian");
        let files = Self { disk: folder.join("disk.raw"), key: folder.join("id_ed25519") };
        if !files.disk.is_file() || !files.key.is_file() {
            bail!("no Debian guest in {}; make it with: cargo xtask setup", folder.display());
        }
        Ok(files)
    }
}

/// Defines it on a host, with its disk; it is not started.
pub async fn define(fleet: &Fleet, host: &str, name: &str) -> anyhow::Result<()> {
    let files = Files::find()?;
    let specification = format!(
        "name = \"{name}\"\nid = \"{}\"\nmemory = \"384 MiB\"\n\n[kernel]\nimage = \"vmlinuz\"\ninitrd = \"initrd\"\n\
         append = \"console=ttyS0 quiet panic=-1 witness.root=vda1\"\n\n[[nic]]\nmac = \"52:54:00:00:00:64\"\n\
         bridge = \"br0\"\n\n[[disk]]\n{DISK}",
        uuid::Uuid::new_v4()
    );
    fleet.define(host, name, &specification).await?;
    let vm = fleet.sterna(&["vm", "show", name]).await?;
    let id = vm["report"]["spec"]["id"].as_str().context("the VM has no id")?;
    let image = fleet.agent(host)?.pool("fast").join(id).join("root.raw");
    let filled = Command::new("qemu-img")
        .args(["convert", "-n", "-f", "raw", "-O", "raw"])
        .args([&files.disk, &image])
        .output()?;
    ensure!(filled.status.success(), "qemu-img: {}", String::from_utf8_lossy(&filled.stderr));
    Ok(())
}

/// What a guest has said on its console.
pub async fn console(fleet: &Fleet, vm: &str) -> anyhow::Result<String> {
    let console = fleet.try_sterna(&["vm", "console", vm, "--no-follow"]).await?;
    Ok(String::from_utf8_lossy(&console.stdout).into_owned())
}

/// Waits until a guest on that host has asked for an address, and answers there.
pub async fn address_taken(fleet: &Fleet, host: &Host, dhcp: &mut Dhcp, vm: &str) -> anyhow::Result<(Ssh, Lease)> {
    let lease = match dhcp.lease(BOOT_WAIT).await {
        Ok(lease) => lease,
        Err(error) => return Err(error.context(format!("the console of {vm}: {}", console(fleet, vm).await?))),
    };
    let ssh = Ssh::new(host, lease.address, fleet.folder())?;
    ssh.answers(fleet, vm).await?;
    Ok((ssh, lease))
}

/// Who a guest says that it is. No two guests may agree in any of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its host name.
    pub hostname: String,
    /// What systemd tells machines apart by.
    pub machine_id: String,
    /// Its public host keys, one a line, without what they are called.
    pub host_keys: Vec<String>,
    /// The host key that it has shown to its client.
    pub shown_key: String,
    /// The address of its interface.
    pub mac: String,
    /// Its SMBIOS UUID.
    pub uuid: String,
}

impl Identity {
    /// Whether it agrees with another guest in nothing that cloud-init is told of.
    pub fn differs_in_what_a_seed_says(&self, other: &Self) -> bool {
        // Of more kinds it may have keys: cloud-init makes those that it knows of.
        let has_keys = self.host_keys.len() >= other.host_keys.len();
        let no_key_is_known = self.host_keys.iter().all(|key| !other.host_keys.contains(key));
        let differs = self.hostname != other.hostname && self.mac != other.mac && self.uuid != other.uuid;
        differs && self.shown_key != other.shown_key && has_keys && no_key_is_known
    }
}

/// ssh, from one host's namespace to a guest.
#[derive(Debug)]
pub struct Ssh {
    from: Host,
    address: Ipv4Addr,
    key: PathBuf,
    known_hosts: PathBuf,
}

impl Ssh {
    /// From there to that address; what is known of the guest is kept in a file of that folder.
    pub fn new(from: &Host, address: Ipv4Addr, folder: &Path) -> anyhow::Result<Self> {
        let known_hosts = folder.join(format!("{address}-known-by-{}", from.name()));
        Ok(Self { from: from.clone(), address, key: Files::find()?.key, known_hosts })
    }

    /// Runs a command in the guest; what it prints.
    pub async fn run(&self, command: &str) -> anyhow::Result<String> {
        let mut ssh = self.from.command("ssh");
        ssh.args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new"]);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", self.known_hosts.display()));
        ssh.arg("-o").arg(format!("ConnectTimeout={CONNECT_SECONDS}")).arg("-i").arg(&self.key);
        ssh.arg(format!("root@{}", self.address)).arg(command);
        let output = tokio::task::spawn_blocking(move || ssh.output()).await??;
        ensure!(output.status.success(), "ssh {command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits until the guest has booted so far that it answers.
    pub async fn answers(&self, fleet: &Fleet, vm: &str) -> anyhow::Result<()> {
        let answer = eventually("an answer over ssh", BOOT_WAIT, async || Ok(self.run("true").await.ok())).await;
        let Err(error) = answer else { return Ok(()) };
        let last = self.run("true").await.err();
        Err(error.context(format!("{last:?}; the console of {vm}: {}", console(fleet, vm).await?)))
    }

    /// Asks the guest who it is.
    pub async fn identity(&self) -> anyhow::Result<Identity> {
        // Of its interfaces, the one that has a device: not the loop.
        let asked = "cat /proc/sys/kernel/hostname /etc/machine-id /sys/class/dmi/id/product_uuid && \
                     (cd /sys/class/net; for name in *; do [ ! -e $name/device ] || cat $name/address; done) && cut -d' ' -f1,2 /etc/ssh/ssh_host_*_key.pub";
        let told = self.run(asked).await?;
        let mut lines = told.lines().map(str::to_owned);
        let mut next = || lines.next().with_context(|| format!("the guest tells less than it was asked: {told}"));
        let (hostname, machine_id, uuid, mac) = (next()?, next()?, next()?, next()?);
        let known = std::fs::read_to_string(&self.known_hosts)?;
        let shown_key = known.lines().next().and_then(|line| line.split_once(' ')).context("a key was shown")?.1;
        Ok(Identity { hostname, machine_id, host_keys: lines.collect(), shown_key: shown_key.to_owned(), mac, uuid })
    }
}
