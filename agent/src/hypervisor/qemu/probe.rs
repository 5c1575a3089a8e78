//! What this host can do: its QEMU, asked once; whether KVM really runs guests; and its processor and memory, as the
//! kernel tells.

mod trial;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use sterna_shared::host::{Accelerator, Cpu, Hypervisor};
use sterna_shared::units::ByteCount;
use tokio::process::{Child, Command};
use tracing::warn;

use super::qmp::{Qmp, QmpError};
pub use trial::{Verdict, WORK_WAIT_MAX, try_out};

/// How long each question to QEMU may take.
const PROBE_WAIT_MAX: Duration = Duration::from_secs(30);
/// The machine types whose devices Sterna can lay out.
const MACHINE_PREFIXES: [&str; 2] = ["pc-q35-", "pc-i440fx-"];

/// Where distributions put UEFI firmware, best first: the code, and what a new variable store is a copy of. The 4 MiB
/// builds come first, because they take the updates that the smaller ones no longer hold.
const UEFI_CANDIDATES: [(&str, &str); 5] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
];
/// The same of UEFI firmware that needs system management mode; the variables have Microsoft's keys, without which it starts anything.
const SECURE_BOOT_CANDIDATES: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/OVMF/OVMF_CODE.secboot.fd", "/usr/share/OVMF/OVMF_VARS.ms.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"),
    ("/usr/share/qemu/ovmf-x86_64-smm-ms-code.bin", "/usr/share/qemu/ovmf-x86_64-smm-ms-vars.bin"),
];

/// What a host can do. It changes when QEMU, the kernel or the machine does: probe at the agent's start and keep it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Its QEMU.
    pub hypervisor: Hypervisor,
    /// Its UEFI firmware, if it has any.
    pub uefi: Option<UefiFirmware>,
    /// Its UEFI firmware with secure boot, if it has any.
    pub secure_boot: Option<UefiFirmware>,
    /// Its processor.
    pub cpu: Cpu,
    /// Its memory.
    pub memory: ByteCount,
}

/// UEFI firmware of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UefiFirmware {
    /// The code.
    pub code: PathBuf,
    /// What a VM's variable store starts as a copy of.
    pub variables_template: PathBuf,
}

/// Probes this host. `scratch` is a directory to write a tiny ROM to, which is removed again.
///
/// # Errors
/// [`ProbeError`].
pub async fn probe(qemu: &Path, scratch: &Path) -> Result<Probe, ProbeError> {
    let read = |path: &'static str| std::fs::read_to_string(path).map_err(|source| ProbeError::Kernel { path, source });
    let cpu = parse_cpu(&read("/proc/cpuinfo")?);
    let memory = parse_memory(&read("/proc/meminfo")?).ok_or(ProbeError::NoMemory)?;
    let [uefi, secure_boot] = [false, true].map(uefi_firmware);
    let accelerator = match try_out(qemu, Accelerator::Kvm, WORK_WAIT_MAX, scratch).await? {
        Verdict::Works => Accelerator::Kvm,
        verdict @ (Verdict::TooSlow | Verdict::Unusable) => {
            warn!(?verdict, "KVM does not run guests on this host; they are translated, which is many times slower");
            Accelerator::Tcg
        }
    };
    let asked = hypervisor(qemu, accelerator).await?;
    let hypervisor = Hypervisor { uefi: uefi.is_some(), secure_boot: secure_boot.is_some(), ..asked };
    Ok(Probe { hypervisor, uefi, secure_boot, cpu, memory })
}

/// All of it that its QEMU tells, which knows nothing of firmware.
async fn hypervisor(qemu: &Path, accelerator: Accelerator) -> Result<Hypervisor, ProbeError> {
    let run = |source| ProbeError::Run { program: qemu.to_owned(), source };
    let mut child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-qmp", "stdio", "-machine"])
        .arg(format!("none,accel={}", accelerator.as_str()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    let hypervisor = ask(&mut child, accelerator).await?;
    // The questions are answered; how QEMU ends does not matter, only that it does.
    let _ = child.kill().await;
    Ok(hypervisor)
}

async fn ask(child: &mut Child, accelerator: Accelerator) -> Result<Hypervisor, ProbeError> {
    #[derive(Deserialize)]
    struct Version {
        qemu: Triple,
    }
    #[derive(Deserialize)]
    struct Triple {
        major: u32,
        minor: u32,
        micro: u32,
    }
    #[derive(Deserialize)]
    struct Machine {
        name: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct CpuModel {
        name: String,
        #[serde(default)]
        unavailable_features: Vec<Value>,
    }
    let (Some(output), Some(input)) = (child.stdout.take(), child.stdin.take()) else {
        return Err(ProbeError::NoPipe);
    };
    let qmp = Qmp::over(tokio::io::join(output, input), PROBE_WAIT_MAX).await?;
    let Version { qemu: Triple { major, minor, micro } } = answer(&qmp, "query-version").await?;
    let machines: Vec<Machine> = answer(&qmp, "query-machines").await?;
    let models: Vec<CpuModel> = answer(&qmp, "query-cpu-definitions").await?;
    let versioned = |name: &String| MACHINE_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let mut machines: Vec<_> = machines.into_iter().map(|machine| machine.name).filter(versioned).collect();
    let runnable = models.into_iter().filter(|model| model.unavailable_features.is_empty());
    let mut cpu_models: Vec<_> = runnable.map(|model| model.name).collect();
    // QEMU's order changes from run to run; an inventory should not.
    machines.sort();
    cpu_models.sort();
    let version = format!("{major}.{minor}.{micro}");
    Ok(Hypervisor { version, accelerator, machines, cpu_models, uefi: false, secure_boot: false })
}

async fn answer<T: serde::de::DeserializeOwned>(qmp: &Qmp, command: &'static str) -> Result<T, ProbeError> {
    let answer = qmp.execute(command, Value::Null, PROBE_WAIT_MAX).await?;
    serde_json::from_value(answer).map_err(|source| ProbeError::Answer { command, source })
}

/// The UEFI firmware of this host, with secure boot or without, as a distribution installs it.
#[must_use]
pub fn uefi_firmware(secure_boot: bool) -> Option<UefiFirmware> {
    let candidates = if secure_boot { &SECURE_BOOT_CANDIDATES[..] } else { &UEFI_CANDIDATES };
    let found = candidates.iter().find(|(code, variables)| Path::new(code).is_file() && Path::new(variables).is_file());
    found.map(|(code, variables)| UefiFirmware { code: code.into(), variables_template: variables.into() })
}

fn parse_cpu(text: &str) -> Cpu {
    let values = |key: &'static str| {
        text.lines().filter_map(move |line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == key).then(|| value.trim())
        })
    };
    let mut features: Vec<_> =
        values("flags").next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    features.sort();
    Cpu {
        model: values("model name").next().unwrap_or("unknown").to_owned(),
        features,
        count: u16::try_from(values("processor").count()).unwrap_or(u16::MAX),
    }
}

fn parse_memory(text: &str) -> Option<ByteCount> {
    let value = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1 << 10).map(ByteCount)
}

/// Why a host could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// QEMU does not start.
    #[error("cannot run {program:?}; install QEMU for x86_64, or set its path in the agent's configuration")]
    Run {
        /// The program.
        program: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The scratch directory cannot be written.
    #[error("cannot write {path:?}; the agent needs a scratch directory")]
    Scratch {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The child has no standard input and output.
    #[error("QEMU was started without pipes to it; this is a fault of the agent")]
    NoPipe,
    /// QEMU does not answer.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU's answer has not the form that its schema promises.
    #[error("QEMU's answer to {command} has not the expected form; this QEMU may be too new for this agent")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The kernel does not tell.
    #[error("cannot read {path}; is /proc mounted?")]
    Kernel {
        /// The file.
        path: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// `/proc/meminfo` says nothing of memory.
    #[error("/proc/meminfo has no line MemTotal in kB")]
    NoMemory,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_understood() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: sse2 avx2 aes\n\nprocessor\t: 1\nmodel name\t: x\nflags\t\t: sse2\n";
        let cpu = parse_cpu(text);
        assert_eq!((cpu.model.as_str(), cpu.count), ("Some CPU @ 2 GHz", 2));
        assert_eq!(cpu.features, ["aes", "avx2", "sse2"]);
        assert_eq!(parse_memory("MemTotal:       24602212 kB\nMemFree: 1 kB\n"), Some(ByteCount(24_602_212 << 10)));
        assert_eq!(parse_memory("MemFree: 1 kB\n"), None);
    }
}
