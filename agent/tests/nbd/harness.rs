//! Images, and servers of them that end with the test.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, PidfdFlags, Signal};
use sterna_agent::disk::nbd::{BASE_ALLOCATION, Client};
use tempfile::TempDir;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The name of every export here.
pub(crate) const EXPORT: &str = "disk";

/// A `qemu-nbd` that serves one image until it is stopped or dropped.
pub(crate) struct Server {
    socket: PathBuf,
    pid: Pid,
}

impl Server {
    /// Serves an image. `qemu-nbd --fork` returns once the socket listens, so nothing has to be waited for.
    pub(crate) fn start(image: &Path, format: &str, options: &[&str]) -> Self {
        let options = [&["-f", format], options].concat();
        Self::serve(image, image.as_os_str(), &options)
    }

    /// Serves the first `size` bytes of a block device, as a guest sees a disk on it.
    pub(crate) fn start_device(device: &Path, size: u64, beside: &Path) -> Self {
        let node = format!("driver=raw,size={size},file.driver=host_device,file.filename={}", device.display());
        Self::serve(beside, node.as_ref(), &["--image-opts"])
    }

    fn serve(image: &Path, what: &OsStr, options: &[&str]) -> Self {
        let socket = image.with_extension("sock");
        let pid_file = image.with_extension("pid");
        let status = Command::new("qemu-nbd")
            .args(["--fork", "-t", "-e", "8", "-x", EXPORT, "--discard=unmap"])
            .arg("--pid-file")
            .arg(&pid_file)
            .arg("-k")
            .arg(&socket)
            .args(options)
            .arg(what)
            .status()
            .expect("qemu-nbd starts");
        assert!(status.success(), "qemu-nbd serves {}", image.display());
        let pid = fs::read_to_string(&pid_file).expect("a pid file").trim().parse().expect("a pid");
        Self { socket, pid: Pid::from_raw(pid).expect("a pid") }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) async fn client(&self, contexts: &[&str], connections: usize) -> Client {
        Client::connect(&self.socket, EXPORT, contexts, connections).await.expect("the server answers")
    }

    pub(crate) async fn plain_client(&self) -> Client {
        self.client(&[BASE_ALLOCATION], 2).await
    }

    /// Ends the server, and waits until it has let go of the image.
    pub(crate) async fn stop(self) {
        let descriptor: OwnedFd = rustix::process::pidfd_open(self.pid, PidfdFlags::NONBLOCK).expect("the server runs");
        // Its deprecation is about descriptors that close or change underneath; this one is owned.
        #[expect(deprecated)]
        let ended = AsyncFd::with_interest(descriptor, Interest::READABLE).expect("a descriptor to wait on");
        drop(self);
        drop(ended.readable().await.expect("the server ends"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.pid, Signal::TERM);
    }
}

pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// Makes an empty image.
pub(crate) fn image(directory: &TempDir, name: &str, format: &str, size: u64) -> PathBuf {
    let path = directory.path().join(format!("{name}.{format}"));
    let status =
        Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&path).arg(size.to_string()).status();
    assert!(status.expect("qemu-img starts").success());
    path
}

/// Makes a raw image with data, written zeroes and holes: of each 4 MiB, one of random bytes (with 128 KiB of written
/// zeroes inside), one of written zeroes, and two that are a hole; and a last half chunk of data.
pub(crate) fn patchwork(directory: &TempDir, name: &str, size: u64) -> PathBuf {
    let path = image(directory, name, "raw", size);
    let file = fs::File::options().write(true).open(&path).expect("the image");
    for start in (0..size).step_by(4 << 20) {
        let mut data = random(1 << 20, start);
        data[256 << 10..384 << 10].fill(0);
        data.resize(2 << 20, 0);
        let room = usize::try_from(size - start).unwrap_or(usize::MAX).min(data.len());
        file.write_all_at(&data[..room], start).expect("room");
    }
    path
}

/// Bytes that look random, the same for the same seed.
pub(crate) fn random(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Whether two images show a guest the same, by QEMU's own word.
pub(crate) fn equal(left: (&Path, &str), right: (&Path, &str)) -> bool {
    let compare = Command::new("qemu-img")
        .args(["compare", "-q", "-f", left.1, "-F", right.1])
        .args([left.0, right.0])
        .status()
        .expect("qemu-img starts");
    assert!(compare.code() != Some(2), "qemu-img compares");
    compare.success()
}

pub(crate) fn qemu_img(arguments: &[&str], image: &Path, rest: &[&str]) {
    let status = Command::new("qemu-img").args(arguments).arg(image).args(rest).status();
    assert!(status.expect("qemu-img starts").success(), "qemu-img {arguments:?}");
}
