//! The peers for disks: programs that copy an image from one host to another.
//!
//! ```text
//!   nbdcopy, qemu-img    peera: qemu-nbd ══ TCP, in the clear ══▶ peerb: the program ── UNIX ──▶ qemu-nbd
//!   rsync                peera: rsync, ssh ═══════════════════▶ peerb: sshd, rsync
//! ```
//!
//! The source image is the same each time, the target is made anew each time. Both servers open their image as Sterna's
//! storage daemon does, with direct I/O, so no copy finds anything in a cache; rsync knows no direct I/O, so its source
//! is put out of the cache before. Each ends with the target's bytes on the disk.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::time::{Instant, sleep};

use super::processor::Meter;
use super::report::Sample;
use crate::namespace::{Host, Link};
use crate::process::Process;

const NBD_PORT: u16 = 10809;
const SSH_PORT: u16 = 2222;
const SSHD: &str = "/usr/sbin/sshd";
/// How long a server may take to listen.
const SERVER_WAIT: Duration = Duration::from_secs(20);
/// How long a copy may take.
const COPY_WAIT: Duration = Duration::from_secs(600);

/// A program that copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Nbdcopy,
    QemuImg,
    Rsync,
}

impl Program {
    pub(super) const ALL: [Self; 3] = [Self::Nbdcopy, Self::QemuImg, Self::Rsync];

    /// The name in reports.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Nbdcopy => "nbdcopy",
            Self::QemuImg => "qemu-img",
            Self::Rsync => "rsync-ssh",
        }
    }

    /// What it needs that this machine does not have.
    pub(super) fn lacks(self) -> Option<String> {
        let needs: &[&str] = match self {
            Self::Nbdcopy => &["qemu-nbd", "nbdcopy"],
            Self::QemuImg => &["qemu-nbd", "qemu-img"],
            Self::Rsync => &["rsync", "ssh", "ssh-keygen", SSHD],
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let installed = |program: &&&str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        let missing = needs.iter().find(|program| !installed(program))?;
        Some(format!("{missing} is not installed"))
    }
}

/// Two hosts, an image on the first, and room on the second.
#[derive(Debug)]
pub(super) struct DiskPeers {
    source: Host,
    target: Host,
    folder: PathBuf,
    image: PathBuf,
    size: u64,
    checked: Vec<Program>,
}

impl DiskPeers {
    /// `image` has `size` bytes and is copied to `folder`, of which nothing is left but what the last copy made.
    pub(super) fn new(hosts: [Host; 2], folder: &Path, image: PathBuf, size: u64) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let [source, target] = hosts;
        Ok(Self { source, target, folder: folder.to_owned(), image, size, checked: Vec::new() })
    }

    /// One copy, measured from the program's start to its end.
    pub(super) async fn copy(&mut self, program: Program) -> anyhow::Result<Sample> {
        let copy = self.folder.join("copy.raw");
        let _ = std::fs::remove_file(&copy);
        let sample = match program {
            Program::Nbdcopy | Program::QemuImg => self.over_nbd(program, &copy).await?,
            Program::Rsync => self.over_ssh(&copy).await?,
        };
        // Once is enough: what is compared must be copies.
        if !self.checked.contains(&program) {
            expect_equal(&self.image, &copy)?;
            self.checked.push(program);
        }
        std::fs::remove_file(&copy)?;
        Ok(sample)
    }

    async fn over_nbd(&self, program: Program, copy: &Path) -> anyhow::Result<Sample> {
        File::create(copy)?.set_len(self.size)?;
        let (address, socket) = (self.source.address(Link::Data), self.folder.join("nbd.sock"));
        let _ = std::fs::remove_file(&socket);
        let options = ["--format=raw", "--cache=none", "--discard=unmap", "--persistent", "--shared=16"];
        let meter = Meter::start(&[&self.source, &self.target])?;
        let mut read = self.source.command("qemu-nbd");
        read.args(options).arg("--read-only").args([format!("--bind={address}"), format!("--port={NBD_PORT}")]);
        let _read = Process::spawn("qemu-nbd", read.arg(&self.image), &self.folder.join("read.log"))?;
        let mut write = self.target.command("qemu-nbd");
        write.args(options).arg(format!("--socket={}", socket.display()));
        let write = Process::spawn("qemu-nbd", write.arg(copy), &self.folder.join("write.log"))?;
        listens(&self.source, NBD_PORT).await?;
        let deadline = Instant::now() + SERVER_WAIT;
        while !socket.exists() {
            ensure!(Instant::now() < deadline, "qemu-nbd does not listen: {:?}", write.lines());
            sleep(Duration::from_millis(10)).await;
        }

        let mut command = match program {
            Program::Nbdcopy => {
                let mut command = self.target.command("nbdcopy");
                command.args(["--flush", "--destination-is-zero", &format!("nbd://{address}:{NBD_PORT}")]);
                command.arg(format!("nbd+unix:///?socket={}", socket.display()));
                command
            }
            _ => {
                let mut command = self.target.command("qemu-img");
                // Not into a cache: the copy ends with a flush, as the others do.
                command.args(["convert", "-f", "raw", "-O", "raw", "-n", "--target-is-zero", "-t", "writeback"]);
                command.args(["-m", "16", "-W", &format!("nbd://{address}:{NBD_PORT}")]);
                command.arg(format!("nbd:unix:{}", socket.display()));
                command
            }
        };
        let seconds = self.run(program, &mut command).await?;
        Ok(Sample { seconds, cpu_seconds: meter.stop().await?, outside_seconds: None })
    }

    async fn over_ssh(&self, copy: &Path) -> anyhow::Result<Sample> {
        let (key, authorized) = (self.folder.join("ssh_key"), self.folder.join("ssh_key.pub"));
        if !key.exists() {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key);
            ensure!(keygen.status()?.success(), "ssh-keygen made no key");
        }
        let address = self.target.address(Link::Data);
        let configuration = self.folder.join("sshd_config");
        let text = format!(
            "Port {SSH_PORT}\nListenAddress {address}\nHostKey {key}\nAuthorizedKeysFile {authorized}\n\
             StrictModes no\nPidFile none\nPermitRootLogin prohibit-password\nUsePAM yes\n",
            key = key.display(),
            authorized = authorized.display(),
        );
        std::fs::write(&configuration, text)?;
        // Where it confines itself; its unit makes it where there is one.
        std::fs::create_dir_all("/run/sshd")?;
        out_of_cache(&self.image)?;
        let meter = Meter::start(&[&self.source, &self.target])?;
        let mut server = self.target.command(SSHD);
        server.args(["-D", "-e", "-f"]).arg(&configuration);
        let _server = Process::spawn("sshd", &mut server, &self.folder.join("sshd.log"))?;
        listens(&self.target, SSH_PORT).await?;

        let shell = format!(
            "ssh -p {SSH_PORT} -i {} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
             -o LogLevel=ERROR -F none",
            key.display()
        );
        let mut command = self.source.command("rsync");
        command.args(["--sparse", "--whole-file", "--fsync", "-e", &shell]).arg(&self.image);
        command.arg(format!("root@{address}:{}", copy.display()));
        let seconds = self.run(Program::Rsync, &mut command).await?;
        Ok(Sample { seconds, cpu_seconds: meter.stop().await?, outside_seconds: None })
    }

    async fn run(&self, program: Program, command: &mut Command) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let mut process = Process::spawn(program.name(), command, &self.folder.join("copy.log"))?;
        let status = process.wait(COPY_WAIT).await?;
        let seconds = begun.elapsed().as_secs_f64();
        if !status.success() {
            bail!("{} ended with {status}: {:?}", program.name(), process.lines());
        }
        Ok(seconds)
    }
}

/// Waits until somebody listens at a host's address.
async fn listens(host: &Host, port: u16) -> anyhow::Result<()> {
    let deadline = Instant::now() + SERVER_WAIT;
    let address = (host.address(Link::Data), port).into();
    loop {
        let host = host.clone();
        let connect = move || host.connect_tcp(address, SERVER_WAIT).map(drop);
        match tokio::task::spawn_blocking(connect).await? {
            Ok(()) => return Ok(()),
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(10)).await,
            Err(error) => return Err(error).with_context(|| format!("nobody listens at {address}")),
        }
    }
}

/// Puts a file on the disk, and out of the page cache.
pub(super) fn out_of_cache(path: &Path) -> anyhow::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

fn expect_equal(left: &Path, right: &Path) -> anyhow::Result<()> {
    let mut compare = Command::new("qemu-img");
    let output = compare.args(["compare", "-f", "raw", "-F", "raw"]).arg(left).arg(right).output()?;
    ensure!(output.status.success(), "the copy is none: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
