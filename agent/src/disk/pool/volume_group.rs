//! A volume group of LVM that disks live in, and the only door to it.
//!
//! ```text
//!   /dev/<group>/sterna-<vm id>-<disk>     tags: sterna, sterna.vm=<vm id>
//! ```
//!
//! **Only what is Sterna's is touched.** A logical volume is made with two tags, and nothing is checked, served or removed
//! that lacks them, whatever its name; `lvremove` gets the tags as a condition of its own, so that LVM holds to it too.
//!
//! **A disk is as long as its specification says**, and its volume up to an extent longer: QEMU is told the length.
//!
//! **A new volume holds what was there before**, another VM's secrets perhaps: it is overwritten before a guest sees it,
//! by zeroes ([`VolumeGroup::zero`]) or by a copy that writes every byte (`Origin::Used`).
//!
//! The program `lvm` does the work, because LVM has no other interface that is stable; its reports are JSON.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::FallocateFlags;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sterna_shared::id::{DiskName, PoolName, VmId};
use sterna_shared::units::ByteCount;
use tokio::process::Command;
use tokio::sync::watch;

use super::{Image, PoolError, Space, program};

/// The longest that `lvm` may take: it waits for other commands of its kind.
const LVM_MAX: Duration = Duration::from_secs(60);
/// The longest name of a volume group: LVM's own limit.
const NAME_LENGTH_MAX: usize = 127;
/// What every volume of Sterna's is tagged with.
const TAG: &str = "sterna";
/// How much is zeroed by one call, which cannot be interrupted.
const ZERO_STEP: u64 = 256 << 20;

/// The name of a volume group, of LVM's characters: `A-Z a-z 0-9 + _ . -`, the first no `-` and no `.`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct VolumeGroupName(String);

/// How LVM is reached.
#[derive(Debug, Clone)]
pub struct Lvm {
    /// The program.
    pub program: PathBuf,
    /// Where the devices of logical volumes appear, in one directory a volume group.
    pub devices: PathBuf,
}

/// A volume group.
#[derive(Debug)]
pub(super) struct VolumeGroup {
    pool: PoolName,
    name: VolumeGroupName,
    lvm: Lvm,
    extent: ByteCount,
    space: watch::Sender<Space>,
}

impl VolumeGroup {
    /// Asks LVM for the group.
    pub(super) async fn open(pool: &PoolName, name: VolumeGroupName, lvm: Lvm) -> Result<Self, PoolError> {
        let (extent, space) = look(pool, &name, &lvm).await?;
        Ok(Self { pool: pool.clone(), name, lvm, extent, space: watch::Sender::new(space) })
    }

    /// The size of its extents.
    pub(super) fn extent(&self) -> ByteCount {
        self.extent
    }

    /// What it had when it was last asked.
    pub(super) fn space(&self) -> Space {
        *self.space.borrow()
    }

    /// Asks again.
    pub(super) async fn refresh(&self) -> Result<(), PoolError> {
        let (_, space) = look(&self.pool, &self.name, &self.lvm).await?;
        self.space.send_replace(space);
        Ok(())
    }

    /// Where the device of a disk is, whether it exists or not.
    pub(super) fn image_path(&self, vm: VmId, disk: &DiskName) -> PathBuf {
        self.lvm.devices.join(&self.name.0).join(volume_name(vm, disk))
    }

    /// Makes a logical volume: the path of its device. What it holds is anybody's guess.
    pub(super) async fn create(&self, vm: VmId, disk: &DiskName, size: ByteCount) -> Result<PathBuf, PoolError> {
        let (name, path) = (volume_name(vm, disk), self.image_path(vm, disk));
        if self.find(vm, disk).await?.is_some() {
            return Err(PoolError::Exists { path });
        }
        // LVM rounds the size up to whole extents.
        let size_text = format!("{}b", size.0);
        let arguments = ["--yes", "--name", &name, "--size", &size_text, "--addtag", TAG, "--addtag", &vm_tag(vm)];
        let arguments = [&arguments[..], &["--", self.name.as_str()]].concat();
        self.run("lvcreate", &path, &arguments).await?;
        let made = device(&path, size, false).map(drop);
        if made.is_err() {
            let _ = self.delete(vm, disk).await;
        }
        self.note_change().await;
        made.map(|()| path)
    }

    /// Makes a volume read as zeroes, by writing them wherever its device cannot do it otherwise.
    pub(super) async fn zero(&self, vm: VmId, disk: &DiskName) -> Result<(), PoolError> {
        let path = self.image_path(vm, disk);
        let failed = |source| PoolError::Io { action: "write zeroes to", path: path.clone(), source };
        let file = device(&path, ByteCount(0), true)?;
        let zeroed = tokio::task::spawn_blocking(move || zero_all(file)).await;
        zeroed.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
    }

    /// Removes a volume. One that is gone already is no error.
    pub(super) async fn delete(&self, vm: VmId, disk: &DiskName) -> Result<(), PoolError> {
        let path = self.image_path(vm, disk);
        let Some(volume) = self.find(vm, disk).await? else { return Ok(()) };
        volume.expect_tags(vm, &path)?;
        let only = format!("{} && lv_tags={{{TAG} && {}}}", named(vm, disk), vm_tag(vm));
        self.run("lvremove", &path, &["--yes", "--select", &only, "--", self.name.as_str()]).await?;
        self.note_change().await;
        Ok(())
    }

    /// Checks that a disk's volume is there, is Sterna's, has a device, and has that size but for rounding.
    pub(super) async fn check(&self, vm: VmId, disk: &DiskName, size: ByteCount) -> Result<Image, PoolError> {
        let path = self.image_path(vm, disk);
        let Some(volume) = self.find(vm, disk).await? else { return Err(PoolError::Missing { path }) };
        volume.expect_tags(vm, &path)?;
        if volume.size.0 != size.0.next_multiple_of(self.extent.0.max(1)) {
            return Err(PoolError::SizeDiffers { path, actual: volume.size, expected: size });
        }
        device(&path, volume.size, false)?;
        Ok(Image { path, virtual_size: size, allocated: volume.size })
    }

    async fn find(&self, vm: VmId, disk: &DiskName) -> Result<Option<Volume>, PoolError> {
        let (select, path) = (named(vm, disk), self.image_path(vm, disk));
        let arguments = report(&["-o", "lv_name,lv_size,lv_tags", "--select", &select, "--", self.name.as_str()]);
        let output = self.run("lvs", &path, &arguments).await?;
        let volumes: Vec<Volume> = parse(&output, |section: Volumes| section.lv).map_err(|message| PoolError::Lvm {
            verb: "lvs",
            path,
            message,
        })?;
        Ok(volumes.into_iter().find(|volume| volume.name == volume_name(vm, disk)))
    }

    async fn run(&self, verb: &'static str, path: &Path, arguments: &[&str]) -> Result<Vec<u8>, PoolError> {
        let output = lvm(&self.lvm, verb, arguments).await;
        output.map_err(|message| PoolError::Lvm { verb, path: path.to_owned(), message })
    }

    /// The room has changed; where LVM does not say how much there is now, the next time will do.
    async fn note_change(&self) {
        if let Err(error) = self.refresh().await {
            tracing::warn!(pool = %self.pool, error = &error as &dyn std::error::Error, "the free space is not known anew");
        }
    }
}

impl VolumeGroupName {
    /// As LVM takes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for VolumeGroupName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for VolumeGroupName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let sound = (1..=NAME_LENGTH_MAX).contains(&text.len())
            && !text.starts_with(['-', '.'])
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte));
        if sound {
            return Ok(Self(text));
        }
        let shown: String = text.chars().take(32).collect();
        Err(format!("{shown:?} is no name of a volume group; give 1 to {NAME_LENGTH_MAX} of A-Z a-z 0-9 + _ . -"))
    }
}

impl Default for Lvm {
    fn default() -> Self {
        Self { program: "lvm".into(), devices: "/dev".into() }
    }
}

/// A logical volume, as `lvs` reports it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Volume {
    #[serde(rename = "lv_name")]
    name: String,
    #[serde(rename = "lv_size", deserialize_with = "bytes")]
    size: ByteCount,
    #[serde(rename = "lv_tags")]
    tags: String,
}

impl Volume {
    fn expect_tags(&self, vm: VmId, path: &Path) -> Result<(), PoolError> {
        let has = |wanted: &str| self.tags.split(',').any(|tag| tag == wanted);
        if has(TAG) && has(&vm_tag(vm)) { Ok(()) } else { Err(PoolError::NotOurs { path: path.to_owned() }) }
    }
}

/// A volume group, as `vgs` reports it.
#[derive(Debug, Deserialize)]
struct Group {
    #[serde(rename = "vg_size", deserialize_with = "bytes")]
    size: ByteCount,
    #[serde(rename = "vg_free", deserialize_with = "bytes")]
    free: ByteCount,
    #[serde(rename = "vg_extent_size", deserialize_with = "bytes")]
    extent: ByteCount,
}

/// What LVM's reports are wrapped in.
#[derive(Deserialize)]
struct Report<T> {
    report: Vec<T>,
}

#[derive(Deserialize)]
struct Volumes {
    lv: Vec<Volume>,
}

#[derive(Deserialize)]
struct Groups {
    vg: Vec<Group>,
}

/// LVM writes numbers as text.
fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<ByteCount, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(ByteCount).map_err(|_| serde::de::Error::custom(format!("{text:?} is no count of bytes")))
}

fn parse<T: DeserializeOwned, U>(output: &[u8], rows: impl Fn(T) -> Vec<U>) -> Result<Vec<U>, String> {
    let report: Report<T> =
        serde_json::from_slice(output).map_err(|error| format!("its report was not understood: {error}"))?;
    Ok(report.report.into_iter().flat_map(rows).collect())
}

async fn look(pool: &PoolName, name: &VolumeGroupName, tools: &Lvm) -> Result<(ByteCount, Space), PoolError> {
    let failed = |message| PoolError::VolumeGroup { pool: pool.clone(), group: name.clone(), message };
    let output = lvm(tools, "vgs", &report(&["-o", "vg_size,vg_free,vg_extent_size", "--", name.as_str()])).await;
    let groups = parse(&output.map_err(failed)?, |section: Groups| section.vg).map_err(failed)?;
    let [Group { size: capacity, free, extent }] = groups[..] else { return Err(failed("it is not there".into())) };
    Ok((extent, Space { capacity, free }))
}

async fn lvm(tools: &Lvm, verb: &str, arguments: &[&str]) -> Result<Vec<u8>, String> {
    let mut command = Command::new(&tools.program);
    // LVM remarks on every descriptor that it inherits, of whoever started the agent too.
    command.arg(verb).args(arguments).env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1").stdin(Stdio::null());
    program::run(&mut command, LVM_MAX).await
}

/// The arguments of a report that programs can read.
fn report<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    [&["--reportformat", "json", "--units", "b", "--nosuffix"], rest].concat()
}

fn volume_name(vm: VmId, disk: &DiskName) -> String {
    format!("sterna-{vm}-{disk}")
}

fn vm_tag(vm: VmId) -> String {
    format!("sterna.vm={vm}")
}

/// The condition by which LVM selects one volume.
fn named(vm: VmId, disk: &DiskName) -> String {
    format!("lv_name=\"{}\"", volume_name(vm, disk))
}

/// Opens the device of a volume, which must be there and hold that much.
fn device(path: &Path, size: ByteCount, write: bool) -> Result<File, PoolError> {
    let not_active = || PoolError::NotActive { path: path.to_owned(), size };
    let mut file = OpenOptions::new().read(true).write(write).open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => not_active(),
        _ => PoolError::Io { action: "open", path: path.to_owned(), source },
    })?;
    let failed = |source| PoolError::Io { action: "examine", path: path.to_owned(), source };
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_block_device() || file.seek(SeekFrom::End(0)).map_err(failed)? < size.0 {
        return Err(not_active());
    }
    Ok(file)
}

fn zero_all(mut file: File) -> io::Result<()> {
    let end = file.seek(SeekFrom::End(0))?;
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    let mut offset = 0;
    while offset < end {
        let length = (end - offset).min(ZERO_STEP);
        rustix::fs::fallocate(&file, flags, offset, length)?;
        offset += length;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As LVM 2.03.16 writes it.
    const LVS: &str = r#"
  {
      "report": [
          {
              "lv": [
                  {"lv_name":"other", "lv_size":"8388608", "lv_tags":""},
                  {"lv_name":"sterna-0197c0de-0000-7000-8000-000000000002-root", "lv_size":"12582912", "lv_tags":"sterna,sterna.vm=0197c0de-0000-7000-8000-000000000002"}
              ]
          }
      ]
  }
"#;

    fn vm(last: char) -> VmId {
        format!("0197c0de-0000-7000-8000-00000000000{last}").parse().expect("a UUID")
    }

    #[test]
    fn reports_are_read_and_tags_believed() {
        let volumes = parse(LVS.as_bytes(), |section: Volumes| section.lv).expect("a report");
        let [other, ours] = &volumes[..] else { panic!("{volumes:?}") };
        assert_eq!(
            (ours.size, &ours.name),
            (ByteCount::mebibytes(12), &volume_name(vm('2'), &"root".parse().expect("a name")))
        );
        ours.expect_tags(vm('2'), Path::new("/dev/vg0/it")).expect("ours");
        for (volume, vm) in [(ours, vm('1')), (other, vm('2'))] {
            assert!(matches!(volume.expect_tags(vm, Path::new("/dev/vg0/it")), Err(PoolError::NotOurs { .. })));
        }
        // A tag is not a part of one, and half the tags are none.
        let tagged = |tags: String| Volume { name: String::new(), size: ByteCount(0), tags };
        for tags in [
            vm_tag(vm('2')),
            "sterna".into(),
            format!("xsterna,{}", vm_tag(vm('2'))),
            format!("sterna,{}0", vm_tag(vm('2'))),
        ] {
            assert!(tagged(tags.clone()).expect_tags(vm('2'), Path::new("x")).is_err(), "{tags}");
        }
        assert!(parse(LVS.replace("12582912", "12M").as_bytes(), |section: Volumes| section.lv).is_err());
        assert!(parse(b"{}", |section: Volumes| section.lv).is_err());
    }

    #[test]
    fn group_names_are_those_of_lvm() {
        for good in ["vg0", "a", "fast+2_x.y-z"] {
            assert_eq!(VolumeGroupName::try_from(good.to_owned()).map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-a", ".", "..", "a/b", "a b", "a\n", "é", &"a".repeat(128)] {
            assert!(VolumeGroupName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
