//! A volume group with real LVM, on a loop device.
//!
//! Where the kernel has no device mapper, LVM keeps its metadata all the same and activates nothing; the script below then
//! plays the device mapper's part, with a second loop device over the very extents that LVM gave out. Where a machine lets
//! nobody make loop devices, or has no LVM, there is no group, and the test says so.

#![expect(clippy::print_stderr, reason = "a test that cannot run says why")]

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// What earlier owners left all over the space.
pub(crate) const OLD: u8 = 0xa5;
/// Where the first extent begins, and how long one is: LVM's defaults.
const FIRST_EXTENT: u64 = 1 << 20;
/// LVM's program, where Debian has it.
const LVM: &str = "/usr/sbin/lvm";

/// Real `lvm` without activation, and the devices that activation would have made.
const WITHOUT_DEVICE_MAPPER: &str = r#"#!/bin/sh
export LVM_SYSTEM_DIR=$(dirname "$0")
/usr/sbin/lvm "$@" || exit
case $1 in lvcreate|lvremove) ;; *) exit 0 ;; esac
/usr/sbin/lvm lvs --noheadings -o lv_name,seg_pe_ranges GROUP 2>/dev/null | while read -r name range; do
  [ -L "/dev/GROUP/$name" ] && continue
  extents=${range##*:}; first=${extents%-*}; last=${extents#*-}
  loop=$(losetup --find --show --offset $((1048576 + first * 4194304)) --sizelimit $(((last - first + 1) * 4194304)) DEVICE)
  ln -s "$loop" "/dev/GROUP/$name"
done
for link in /dev/GROUP/*; do
  [ -L "$link" ] || continue
  /usr/sbin/lvm lvs GROUP/"$(basename "$link")" >/dev/null 2>&1 && continue
  losetup --detach "$(readlink "$link")"; rm "$link"
done
exit 0
"#;

/// A volume group that is gone with this.
pub(crate) struct Group {
    folder: TempDir,
    pub(crate) name: String,
    device: String,
    /// Where a program `lvm` is that works here: first on the path of whoever is to use the group.
    pub(crate) programs: PathBuf,
    size: u64,
    stands_in: bool,
}

impl Group {
    /// None, and why, where this machine cannot have one.
    pub(crate) fn make(size: u64) -> Option<Self> {
        if let Err(why) = run(Command::new(LVM).arg("version")) {
            return not_run(&format!("there is no {LVM} (package lvm2): {why}"));
        }
        let folder = tempfile::tempdir().expect("a directory");
        let image = folder.path().join("physical");
        fs::File::create(&image).and_then(|file| file.set_len(size)).expect("a file");
        let device = match run(Command::new("losetup").args(["--find", "--show"]).arg(&image)) {
            Ok(device) => device.trim().to_owned(),
            Err(why) => return not_run(&format!("no loop device can be made here: {why}")),
        };
        let name = format!("sterna-test-{}", uuid::Uuid::new_v4().simple());
        // The device of its name is there in any case: LVM makes it, and then finds nobody behind it.
        let stands_in = !fs::read_to_string("/proc/misc").is_ok_and(|misc| misc.contains("device-mapper"));
        let programs = if stands_in { folder.path().to_owned() } else { Path::new(LVM).with_file_name("") };
        let group = Self { folder, name, device, programs, size, stands_in };
        if stands_in {
            group.stand_in();
        }
        run(group.lvm().args(["pvcreate", "--yes", &group.device])).expect("a physical volume");
        run(group.lvm().args(["vgcreate", &group.name, &group.device])).expect("a volume group");
        if stands_in {
            // Only now: LVM takes no name that has a directory already.
            fs::create_dir(Path::new("/dev").join(&group.name)).expect("a directory");
        }
        group.spoil();
        let how = if stands_in { "loop devices stand in for the device mapper" } else { "by the device mapper" };
        eprintln!("volume group {} on {}, {how}", group.name, group.device);
        Some(group)
    }

    /// LVM, as it works here.
    pub(crate) fn lvm(&self) -> Command {
        let mut command = Command::new(self.programs.join("lvm"));
        command.env("LVM_SUPPRESS_FD_WARNINGS", "1");
        command
    }

    /// Writes old content all over the space, behind LVM's own data. There must be no volume.
    pub(crate) fn spoil(&self) {
        let file = fs::File::options().write(true).open(&self.device).expect("the device");
        let content = vec![OLD; 1 << 20];
        for offset in (FIRST_EXTENT..self.size).step_by(content.len()) {
            file.write_all_at(&content, offset).expect("written");
        }
        file.sync_all().expect("written");
    }

    /// The names of all volumes.
    pub(crate) fn volumes(&self) -> Vec<String> {
        let listed = run(self.lvm().args(["lvs", "--noheadings", "-o", "lv_name", &self.name])).expect("a list");
        listed.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }

    fn stand_in(&self) {
        let (folder, device) = (self.folder.path(), &self.device);
        let configuration = format!(
            "global {{ activation = 0\n locking_dir = \"{0}/lock\" }}\nbackup {{ backup = 0\n archive = 0 }}\n\
             devices {{ use_devicesfile = 0\n obtain_device_list_from_udev = 0\n external_device_info_source = \"none\"\n\
             filter = [ \"a|^{device}$|\", \"r|.*|\" ] }}\n",
            folder.display()
        );
        fs::write(folder.join("lvm.conf"), configuration).expect("written");
        let program = folder.join("lvm");
        fs::write(&program, WITHOUT_DEVICE_MAPPER.replace("GROUP", &self.name).replace("DEVICE", device))
            .expect("written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for arguments in [["lvremove", "--yes", &self.name], ["vgremove", "--yes", &self.name]] {
            let _ = run(self.lvm().args(arguments));
        }
        if self.stands_in {
            let _ = fs::remove_dir(Path::new("/dev").join(&self.name));
        }
        let _ = run(Command::new("losetup").args(["--detach", &self.device]));
    }
}

/// Runs a program; what it wrote, or what it complained of.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn not_run<T>(why: &str) -> Option<T> {
    eprintln!("NOT RUN: {why}");
    None
}
