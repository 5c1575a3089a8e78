//! A disk with a real Debian on it, as an administrator would make one: debootstrap, an ssh server, a serial console, cloud-init. No
//! loop device is needed, and nothing of it is ever mounted on this machine.
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
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{find_program, output, run, say, shown, target};
use crate::guest::{remove, write_whole};
use crate::packages::{self, Mirror};

const SUITE: &str = "bookworm";
/// Debian's own images for clouds have netplan too: cloud-init hands it the network. What is only needed by a name that it stands for,
/// as the last is of cloud-init's, debootstrap does not find by itself.
const PACKAGES: &str = "systemd-sysv,udev,dbus,openssh-server,netplan.io,cloud-init,python3-cffi-backend";
/// The disk, and where its one partition begins.
const DISK_BYTES: u64 = 768 << 20;
const PARTITION_START: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
/// Goes up when the disk is put together in another way.
const LAYOUT: u32 = 2;
const FILE_MODE: u32 = 0o644;
const FOLDER_MODE: u32 = 0o755;
const SECRET_FOLDER_MODE: u32 = 0o700;

/// What is put into the system, beside what its packages bring.
const FILES: [(&str, &str); 5] = [
    ("etc/hostname", "original\n"),
    ("etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\toriginal.example\toriginal\n"),
    ("etc/fstab", "# the root, by the name of its device\n/dev/vda1\t/\text4\tdefaults\t0 0\n"),
    // As cloud-init leaves it behind: the first address that a test's network gives to a guest, for this guest alone.
    (
        "etc/netplan/50-cloud-init.yaml",
        "network:\n  version: 2\n  ethernets:\n    lan:\n      match: {macaddress: \"52:54:00:00:00:64\"}\n      \
         addresses: [10.77.0.100/24]\n      link-local: []\n      accept-ra: false\n",
    ),
    ("etc/cloud/cloud.cfg.d/90-test.cfg", CLOUD_INIT),
];
/// What cloud-init reads of it. Of two sources it looks first whether one is there, and does nothing otherwise: the guest that is
/// cloned boots no slower for it. Of its modules those are run, emulated, that have to do with what a clone is told.
const CLOUD_INIT: &str = "datasource_list: [NoCloud, ConfigDrive]\n\
                          apt: {preserve_sources_list: false}\n\
                          cloud_init_modules: [set_hostname, update_hostname, update_etc_hosts, users-groups, ssh]\n\
                          cloud_config_modules: [apt-configure]\n\
                          cloud_final_modules: []\n";
/// What older systems write for each address, which a clone must not keep.
const RULES: (&str, &str) = (
    "etc/udev/rules.d/70-persistent-net.rules",
    "SUBSYSTEM==\"net\", ATTR{address}==\"52:54:00:00:00:64\", NAME=\"lan0\"\n",
);
/// Done inside. Timers would have a guest that is emulated busy with what no test needs.
const FINISH: &str = "umask 022 && systemctl enable systemd-networkd && \
                      systemctl mask apt-daily.timer apt-daily-upgrade.timer \
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
    say(format_args!("making a Debian guest in {}; this takes a few minutes, once", folder.display()));
    fs::create_dir_all(&folder)?;
    // One that is cut in the middle must not be taken for a whole one.
    remove(&folder.join("key"))?;
    let root = folder.join("root");
    remove_root(&root)?;
    bootstrap(&root, &folder.join("debootstrap.log"))?;
    finish(&root, &folder)?;
    make_disk(&root, &folder)?;
    write_whole(&folder.join("key"), key.as_bytes())?;
    remove_root(&root)
}

fn bootstrap(root: &Path, log: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(program("debootstrap")?);
    command.args(["--variant=minbase", "--include", PACKAGES]);
    let mirror = packages::mirror_of(SUITE).filter(Mirror::is_plain);
    if let Some(keyring) = mirror.as_ref().and_then(Mirror::keyring_file) {
        command.arg(format!("--keyring={keyring}"));
    }
    command.arg(SUITE).arg(root).args(mirror.map(|mirror| mirror.uri));
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
    set_mode(root, FOLDER_MODE)?;
    for (name, text) in FILES.into_iter().chain([RULES]) {
        put(root, name, text)?;
    }
    run(Command::new(program("chroot")?).arg(root).args(["sh", "-c", FINISH]))?;
    let (secret, public) = (folder.join("id_ed25519"), folder.join("id_ed25519.pub"));
    for key in [&secret, &public] {
        remove(key)?;
    }
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(&secret))?;
    make_folder(root, Path::new("root/.ssh"), SECRET_FOLDER_MODE)?;
    put(root, "root/.ssh/authorized_keys", &fs::read_to_string(&public)?)?;
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

/// Writes a file that everybody may read, whatever the umask is.
fn put(root: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = root.join(name);
    make_folder(root, path.strip_prefix(root)?.parent().context("every file is in a folder")?, FOLDER_MODE)?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    set_mode(&path, FILE_MODE)
}

/// Makes the folders that are missing, each with this mode.
fn make_folder(root: &Path, name: &Path, mode: u32) -> anyhow::Result<()> {
    let mut path = root.to_owned();
    for part in name {
        path.push(part);
        if !path.is_dir() {
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
            set_mode(&path, mode)?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Removes the folder of the root, with nothing of this machine in it: a debootstrap that was cut leaves its `/proc` mounted
/// there.
fn remove_root(root: &Path) -> anyhow::Result<()> {
    if let Ok(whole) = fs::canonicalize(root) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot tell what is mounted")?;
        for mount in mounts_below(&mounts, &whole) {
            run(Command::new(program("umount")?).arg(mount))?;
        }
    }
    remove(root)
}

/// What is mounted there and below, the latest first.
fn mounts_below(mountinfo: &str, root: &Path) -> Vec<PathBuf> {
    let places = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(|place| {
        // Space, tab, newline and backslash are written in octal.
        let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
        PathBuf::from(plain.into_iter().fold(place.to_owned(), |place, (octal, letter)| place.replace(octal, letter)))
    });
    let mut below: Vec<PathBuf> = places.filter(|place| place.starts_with(root)).collect();
    below.reverse();
    below
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

    #[test]
    fn what_is_mounted_below_a_folder_is_found() {
        let text = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:5 / /a\\040b/root/proc rw - proc proc rw\n\
                    31 22 0:6 / /a\\040b/root2 rw - tmpfs t rw\n32 30 0:7 / /a\\040b/root/proc/sys rw - binfmt b rw\n";
        let below = mounts_below(text, Path::new("/a b/root"));
        assert_eq!(below, [Path::new("/a b/root/proc/sys"), Path::new("/a b/root/proc")]);
        assert!(mounts_below(text, Path::new("/c")).is_empty());
    }

    #[test]
    fn files_have_their_modes_and_folders_that_were_there_keep_theirs() {
        let root = std::env::temp_dir().join(format!("sterna-modes-{}", std::process::id()));
        fs::create_dir_all(root.join("old")).expect("a folder");
        let outcome = set_mode(&root.join("old"), 0o711)
            .and_then(|()| make_folder(&root, Path::new("old/secret"), SECRET_FOLDER_MODE))
            .and_then(|()| put(&root, "old/secret/new/file", "text"));
        let mode = |name: &str| fs::metadata(root.join(name)).map(|of| of.permissions().mode() & 0o777).unwrap_or(0);
        let modes = ["old", "old/secret", "old/secret/new", "old/secret/new/file"].map(mode);
        fs::remove_dir_all(&root).expect("removed");
        outcome.expect("written");
        assert_eq!(modes, [0o711, 0o700, 0o755, 0o644]);
    }
}
