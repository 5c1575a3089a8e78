//! The guests of the tests: Debian's cloud kernel, unpacked and not installed, and two initramfs: with the witness, and with the
//! helper guest that adapts clones, which is part of the product.
//!
//! ```text
//!   target/guest/package/linux-image-….deb                  downloaded once
//!   target/guest/kernel/                                    unpacked from it
//!   target/guest/{vmlinuz, initrd, adapter.initrd, key}     what QEMU is given, and what it was made from
//! ```

use std::collections::{HashMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::command::{cargo, run, say, shown, target};
use crate::initramfs::Archive;
use crate::packages;

const KERNEL: &str = "linux-image-cloud-amd64";
/// What `apt-cache` ends with where it knows no such package.
const APT_UNKNOWN: i32 = 100;
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// Drivers of the devices that a guest may be given, and file systems of a Debian that is started, which has no modules of its own:
/// its root, and a seed, with the tables that names on it are read by. What the kernel has built in or does not know is left out.
const MODULES: [&str; 14] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "nvme",
    "ahci",
    "virtio_net",
    "failover",
    "virtio_console",
    "crc32c_generic",
    "ext4",
    "vfat",
    "nls_cp437",
    "nls_ascii",
];
/// Those that the helper guest needs: disks, its port, random numbers, and file systems.
const ADAPTER_MODULES: [&str; 7] =
    ["virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "crc32c_generic", "ext4", "xfs"];
/// Without these no test can run.
const MODULES_NEEDED: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console"];
/// Goes up when the initramfs is put together in another way.
const LAYOUT: u32 = 4;

/// The folder with `vmlinuz` and `initrd`, made where it is missing or older than the witness.
pub(crate) fn ensure() -> anyhow::Result<PathBuf> {
    let folder = target().join("guest");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (witness, adapter) = (build_static("sterna-witness")?, build_static("sterna-adapter")?);
    let package = kernel_package(&folder.join("package"))?;

    let mut hasher = DefaultHasher::new();
    (LAYOUT, &package, &witness, &adapter).hash(&mut hasher);
    let key = format!("{:016x}\n", hasher.finish());
    let made = ["vmlinuz", "initrd", "adapter.initrd"].iter().all(|name| folder.join(name).is_file());
    if made && fs::read_to_string(folder.join("key")).is_ok_and(|present| present == key) {
        return Ok(folder);
    }

    say(format_args!("putting the guest together in {}", folder.display()));
    // One that is cut in the middle must not be taken for a whole one.
    remove(&folder.join("key"))?;
    let kernel = folder.join("kernel");
    remove(&kernel)?;
    run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&kernel))?;
    let image = find(&kernel.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    write_whole(&folder.join("vmlinuz"), &fs::read(image)?)?;
    let modules = Modules::of(&kernel)?;
    write_whole(&folder.join("initrd"), &initramfs(&modules, &MODULES, &witness)?)?;
    write_whole(&folder.join("adapter.initrd"), &initramfs(&modules, &ADAPTER_MODULES, &adapter)?)?;
    write_whole(&folder.join("key"), key.as_bytes())?;
    fs::remove_dir_all(&kernel)?;
    Ok(folder)
}

/// Builds a static program. With `--target` given, the flags do not reach build scripts.
fn build_static(package: &str) -> anyhow::Result<Vec<u8>> {
    let mut build = cargo();
    build.args(["build", "--locked", "--quiet", "--package", package, "--target", TRIPLE]);
    run(build.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols"))?;
    let program = target().join(TRIPLE).join("debug").join(package);
    fs::read(&program).with_context(|| format!("cannot read {}", program.display()))
}

fn kernel_package(folder: &Path) -> anyhow::Result<PathBuf> {
    let is_package = |name: &str| name.ends_with(".deb");
    if let Ok(package) = find(folder, is_package) {
        return Ok(package);
    }
    say(format_args!("downloading Debian's cloud kernel for the guest (it is unpacked, not installed)"));
    let name = match kernel_name()? {
        Some(name) => name,
        None if packages::is_root() => {
            packages::update()?;
            kernel_name()?.with_context(|| format!("apt knows no package {KERNEL}"))?
        }
        None => bail!("apt knows no package {KERNEL} yet; run: sudo apt-get update"),
    };
    // Under another name until it is whole: apt writes into its working directory.
    let partial = folder.with_extension("partial");
    fs::create_dir_all(&partial)?;
    run(Command::new("apt-get").current_dir(&partial).arg("download").arg(&name))?;
    fs::rename(&partial, folder)?;
    find(folder, is_package)
}

/// The package that the metapackage stands for: the first it depends on. None where apt does not know it.
fn kernel_name() -> anyhow::Result<Option<String>> {
    let mut ask = Command::new("apt-cache");
    ask.args(["depends", KERNEL]);
    let answer = ask.output().with_context(|| format!("cannot run {}", shown(&ask)))?;
    match answer.status.code() {
        Some(0) => {}
        Some(APT_UNKNOWN) => return Ok(None),
        _ => bail!("{} ended with {}: {}", shown(&ask), answer.status, String::from_utf8_lossy(&answer.stderr)),
    }
    let text = String::from_utf8_lossy(&answer.stdout);
    Ok(text.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned))
}

fn initramfs(modules: &Modules, wanted: &[&str], init: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "root", "lib", "lib/modules"] {
        archive.folder(folder);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("init", init);
    let mut order = String::new();
    for (name, contents) in modules.in_order(wanted)? {
        archive.file(&format!("lib/modules/{name}.ko"), &contents);
        order.push_str(&format!("{name}.ko\n"));
    }
    archive.file("lib/modules/order", order.as_bytes());
    Ok(archive.finish())
}

/// The modules of a kernel, by name. Debian's package brings no `modules.dep`, but each module says what it needs.
struct Modules {
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
}

impl Modules {
    fn of(kernel: &Path) -> anyhow::Result<Self> {
        // Debian 13 has lib under usr.
        let folders = [kernel.join("lib/modules"), kernel.join("usr/lib/modules")];
        let root = folders.iter().find(|folder| folder.is_dir()).context("the package holds no modules")?;
        let version = find(root, |_| true)?;
        let built_in = fs::read_to_string(version.join("modules.builtin"))?;
        let mut modules = Self { files: HashMap::new(), built_in: built_in.lines().map(name_of).collect() };
        modules.collect(&version.join("kernel"))?;
        Ok(modules)
    }

    fn collect(&mut self, folder: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.collect(&entry.path())?;
            } else if let Some(name) = entry.file_name().to_str().filter(|name| name.contains(".ko")) {
                self.files.insert(name_of(name), entry.path());
            }
        }
        Ok(())
    }

    /// The wanted modules and all they need, each after what it needs.
    fn in_order(&self, wanted: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut done = HashSet::new();
        let mut ordered = Vec::new();
        for name in wanted {
            self.add(name, &mut done, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, done: &mut HashSet<String>, out: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
        if !done.insert(name.to_owned()) || self.built_in.contains(name) {
            return Ok(());
        }
        let Some(file) = self.files.get(name) else {
            if MODULES_NEEDED.contains(&name) {
                bail!("the kernel has no {name}: delete target/guest/package to fetch another kernel");
            }
            return Ok(());
        };
        let contents = read_module(file)?;
        for need in needs(&contents) {
            self.add(&need, done, out)?;
        }
        out.push((name.to_owned(), contents));
        Ok(())
    }
}

fn read_module(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    packages::install([&packages::XZ])?;
    let unpacked = Command::new("xz").args(["--decompress", "--stdout"]).arg(file).output()?;
    if !unpacked.status.success() {
        bail!("cannot unpack {}: {}", file.display(), String::from_utf8_lossy(&unpacked.stderr));
    }
    Ok(unpacked.stdout)
}

/// From `kernel/drivers/net/virtio-net.ko.xz`, `virtio_net`: dash and underscore are one in names of modules.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// What a module says it needs: `depends=a,b` among the NUL-terminated strings of its section `.modinfo`.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let start = module.windows(KEY.len()).position(|window| window == KEY).map(|at| at + KEY.len());
    let value = start.and_then(|start| module[start..].split(|byte| *byte == 0).next()).unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.split(',').filter(|name| !name.is_empty()).map(name_of).collect()
}

fn find(folder: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted))
        .with_context(|| format!("{} does not hold what was looked for", folder.display()))
}

/// A test that starts meanwhile sees the old file or the new one, and no half of one.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes a file or a folder; one that is not there is no fault.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
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
    fn a_module_says_what_it_needs() {
        assert_eq!(needs(b"\x7fELF..\0license=GPL\0depends=virtio,net-failover\0name=x\0"), ["virtio", "net_failover"]);
        assert!(needs(b"\0depends=\0retpoline=Y\0").is_empty());
        assert!(needs(b"no such string").is_empty());
        assert_eq!(name_of("kernel/drivers/char/hw_random/virtio-rng.ko.xz"), "virtio_rng");
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let folder = std::env::temp_dir().join(format!("sterna-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let mut modules = Modules { files: HashMap::new(), built_in: HashSet::from(["core".to_owned()]) };
        for (name, depends) in [("virtio_net", "net_failover,core"), ("net_failover", "failover"), ("failover", "")] {
            let file = folder.join(name);
            fs::write(&file, format!("\0depends={depends}\0")).expect("written");
            modules.files.insert(name.to_owned(), file);
        }
        let names = |wanted: &[&str]| -> anyhow::Result<Vec<String>> {
            Ok(modules.in_order(wanted)?.into_iter().map(|(name, _)| name).collect())
        };
        let ordered = names(&["virtio_net", "failover", "unheard_of"]);
        let refused = names(&["virtio_blk"]);
        fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(ordered.expect("resolved"), ["failover", "net_failover", "virtio_net"]);
        assert!(refused.is_err());
    }
}
