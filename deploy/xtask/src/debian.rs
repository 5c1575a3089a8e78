//! A disk with a real Debian on it, as an administrator would make one: debootstrap, an ssh server, a serial console. No loop
//! device is needed, and nothing of it is ever mounted on this machine.
//!
//! ```text
//!   debootstrap ─▶ a folder ─▶ mke2fs -d ─▶ a file system behind a partition table of one entry
//!   target/guest/debian/{disk.raw, id_ed25519, key, debootstrap.log}       what a test is given, and what it was made from
//! ```
//!
//! It boots from the kernel and the initramfs of the witness, which hands over to the root that `witness.root` names.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{find_program, output, run, say, shown, target};
use crate::guest::write_whole;
use crate::packages;

const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd-sysv,udev,dbus,openssh-server";
/// The disk, and where its one partition begins.
const DISK_BYTES: u64 = 768 << 20;
const PARTITION_START: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
/// Goes up when the disk is put together in another way.
const LAYOUT: u32 = 1;

/// What is put into the system, beside what its packages bring.
const FILES: [(&str, &str); 4] = [
    ("etc/hostname", "original\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\toriginal.example\toriginal\n"),
    ("etc/fstab", "# the root, by the name of its device\n/dev/vda1\t/\text4\tdefaults\t0 0\n"),
    // The first address that a test's network gives to a guest.
    (
        "etc/systemd/network/10-lan.network",
        "[Match]\nType=ether\n\n[Network]\nAddress=10.77.0.100/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    ),
];
/// What older systems write for each address, which a clone must not keep.
const RULES: (&str, &str) = (
    "etc/udev/rules.d/70-persistent-net.rules",
    "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:00:00:64\", NAME=\"lan0\"\n",
);
/// Done inside. Timers would have a guest that is emulated busy with what no test needs.
const FINISH: &str = "systemctl enable systemd-networkd && systemctl mask apt-daily.timer apt-daily-upgrade.timer \
                      dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-networkd-wait-online.service";
/// What is left out of the disk: caches, and what nobody reads there.
const LEFT_OUT: [&str; 6] = [
    "var/cache/apt",
    "var/lib/apt/lists",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/log/bootstrap.log",
];

/// Makes the disk where it is missing, or was made in another way.
pub(crate) fn ensure() -> anyhow::Result<()> {
    let folder = target().join("guest/debian");
    let mut hasher = DefaultHasher::new();
    (LAYOUT, SUITE, PACKAGES, FILES, RULES, FINISH, LEFT_OUT, DISK_BYTES).hash(&mut hasher);
    let key = format!("{:016x}\n", hasher.finish());
    let made = ["disk.raw", "id_ed25519"].iter().all(|name| folder.join(name).is_file());
    if made && fs::read_to_string(folder.join("key")).is_ok_and(|present| present == key) {
        return Ok(());
    }
    if !packages::is_root() {
        bail!("making the Debian guest needs root, for debootstrap; run: sudo cargo xtask setup");
    }
    say(format_args!("making a Debian guest in {}; this takes a minute or two, once", folder.display()));
    fs::create_dir_all(&folder)?;
    let root = folder.join("root");
    remove(&root)?;
    bootstrap(&root, &folder.join("debootstrap.log"))?;
    finish(&root, &folder)?;
    make_disk(&root, &folder)?;
    write_whole(&folder.join("key"), key.as_bytes())?;
    remove(&root)
}

fn bootstrap(root: &Path, log: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(program("debootstrap")?);
    command.args(["--variant=minbase", "--include", PACKAGES, SUITE]).arg(root);
    command.args(packages::mirror_of(SUITE));
    say(format_args!("$ {} (its words go to {})", shown(&command), log.display()));
    let words = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let status = command.env("LC_ALL", "C").stdout(words.try_clone()?).stderr(words).status()?;
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(3).collect();
        bail!(
            "debootstrap ended with {status}: {}; can the mirror be reached? See {}",
            last.into_iter().rev().collect::<Vec<_>>().join(" · "),
            log.display()
        );
    }
    Ok(())
}

fn finish(root: &Path, folder: &Path) -> anyhow::Result<()> {
    for (name, text) in FILES.into_iter().chain([RULES]) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("every file is in a folder")?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    run(Command::new(program("chroot")?).arg(root).args(["sh", "-c", FINISH]))?;
    let (secret, public) = (folder.join("id_ed25519"), folder.join("id_ed25519.pub"));
    for key in [&secret, &public] {
        remove(key)?;
    }
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(&secret))?;
    fs::create_dir_all(root.join("root/.ssh"))?;
    fs::copy(&public, root.join("root/.ssh/authorized_keys"))?;
    LEFT_OUT.iter().try_for_each(|name| remove(&root.join(name)))
}

/// A partition table of the oldest kind, with one entry, and the file system in it.
fn make_disk(root: &Path, folder: &Path) -> anyhow::Result<()> {
    let disk = folder.join("disk.partial");
    remove(&disk)?;
    let mut file = File::create(&disk)?;
    file.set_len(DISK_BYTES)?;
    file.seek(SeekFrom::Start(446))?;
    file.write_all(&partition()?)?;
    file.seek(SeekFrom::Start(510))?;
    file.write_all(&[0x55, 0xaa])?;
    drop(file);
    let mut format = Command::new(program("mke2fs")?);
    format.args(["-q", "-F", "-t", "ext4", "-b", &BLOCK_BYTES.to_string(), "-d"]).arg(root);
    format.args(["-E", &format!("offset={PARTITION_START}")]).arg(&disk);
    run(format.arg(((DISK_BYTES - PARTITION_START) / BLOCK_BYTES).to_string()))?;
    fs::rename(&disk, folder.join("disk.raw"))?;
    let taken = output(Command::new("du").args(["--block-size=1M", "--summarize"]).arg(folder.join("disk.raw")))?;
    say(format_args!("the Debian guest takes {} MiB", taken.split_whitespace().next().unwrap_or("?")));
    Ok(())
}

/// The entry: Linux, from the first MiB to the end.
fn partition() -> anyhow::Result<[u8; 16]> {
    const LINUX: u8 = 0x83;
    // Addresses of cylinders, heads and sectors say that they cannot say it.
    const FAR: [u8; 3] = [0xfe, 0xff, 0xff];
    let sectors = |bytes: u64| anyhow::Ok(u32::try_from(bytes / SECTOR_BYTES)?.to_le_bytes());
    let mut entry = [0; 16];
    entry[1..4].copy_from_slice(&FAR);
    entry[4] = LINUX;
    entry[5..8].copy_from_slice(&FAR);
    entry[8..12].copy_from_slice(&sectors(PARTITION_START)?);
    entry[12..16].copy_from_slice(&sectors(DISK_BYTES - PARTITION_START)?);
    Ok(entry)
}

fn program(name: &str) -> anyhow::Result<PathBuf> {
    find_program(name).with_context(|| format!("{name} is not installed"))
}

/// Removes a file or a folder; one that is not there is no fault.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_is_where_the_file_system_begins() {
        let entry = partition().expect("an entry");
        assert_eq!(entry[..8], [0, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
        assert_eq!(entry[8..12], 2048_u32.to_le_bytes());
        assert_eq!(entry[12..], (767_u32 * 2048).to_le_bytes());
    }
}
