//! A whole fleet on one machine: nats-server with TLS, a coordinator, an agent in a namespace of its own for each host,
//! and the command line, all as an operator would run them.
//!
//! ```text
//!   control (nats-server, sterna-coordinator, sterna)     client (talks to guests)
//!        │ data network                                        │ lan
//!      alpha (sterna-agent, its guests) ══════════════ bravo (sterna-agent, its guests)
//! ```

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;
use sterna_witness::protocol::DEFAULT_PORT;
use tempfile::TempDir;

use crate::guest_image::GuestImage;
use crate::namespace::{Host, Link, Network};
use crate::nats::NatsServer;
use crate::process::Process;
use crate::witness::Witness;

/// The data-plane port of every agent; each is in a namespace of its own.
pub const AGENT_PORT: u16 = 4900;
/// How long a part may take to be ready.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long a guest may take to boot.
const BOOT_WAIT: Duration = Duration::from_secs(90);
/// The pools that every host has.
const POOLS: [&str; 2] = ["fast", "bulk"];

/// A fleet. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Fleet {
    agents: BTreeMap<String, Agent>,
    coordinator: Option<Process>,
    /// The broker; may be stopped and started again.
    pub nats: NatsServer,
    /// Where the broker, the coordinator and the command line run.
    pub control: Host,
    /// Where the test talks to guests from.
    pub client: Host,
    /// All hosts.
    pub network: Network,
    folder: TempDir,
}

/// One host of it.
#[derive(Debug)]
pub struct Agent {
    /// Its namespace.
    pub host: Host,
    folder: PathBuf,
    process: Option<Process>,
    /// Programs that it finds before the system's.
    programs: Option<PathBuf>,
}

impl Fleet {
    /// Starts one with these hosts.
    pub async fn start(names: &[&str]) -> anyhow::Result<Self> {
        let mut network = Network::new()?;
        let folder = tempfile::Builder::new().prefix("st").tempdir()?;
        let control = network.host("control")?;
        let client = network.host("client")?;
        let pki = folder.path().join("pki");
        let address = control.address(Link::Data);
        sterna(["pki", "init", "--dir", text(&pki)?])?;
        sterna(["pki", "issue", "server", &address.to_string(), "--dir", text(&pki)?])?;
        for name in names {
            sterna(["pki", "issue", "host", name, "--dir", text(&pki)?])?;
        }
        let broker = folder.path().join("nats");
        let hosts = names.join(",");
        let (certificate, key) =
            (pki.join(format!("server-{address}.pem")), pki.join(format!("server-{address}-key.pem")));
        sterna([
            "nats-config",
            "--dir",
            text(&broker)?,
            "--host",
            &hosts,
            "--certificate",
            text(&certificate)?,
            "--key",
            text(&key)?,
            "--store",
            text(&folder.path().join("jetstream"))?,
        ])?;
        let configuration = std::fs::read_to_string(broker.join("nats-server.conf"))?;
        let nats = NatsServer::start(Some(&control), &configuration).await?;
        let mut fleet = Self { agents: BTreeMap::new(), coordinator: None, nats, control, client, network, folder };
        for name in names {
            fleet.add_agent(name)?;
        }
        fleet.write_configurations()?;
        fleet.start_coordinator().await?;
        for name in names {
            fleet.start_agent(name).await?;
        }
        fleet.wait_for_hosts(names).await?;
        Ok(fleet)
    }

    fn add_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let host = self.network.host(name)?;
        let folder = self.folder.path().join(name);
        for pool in POOLS {
            std::fs::create_dir_all(folder.join("pools").join(pool))?;
        }
        std::fs::create_dir_all(self.folder.path().join("shared"))?;
        self.agents.insert(name.to_owned(), Agent { host, folder, process: None, programs: None });
        Ok(())
    }

    fn nats_section(&self, key: &str) -> String {
        format!(
            "[nats]\nservers = [\"tls://{}\"]\nca_file = \"{}\"\nnkey_file = \"{}\"\n",
            self.nats.address(),
            self.folder.path().join("pki/ca.pem").display(),
            self.folder.path().join(format!("nats/nkeys/{key}.nk")).display(),
        )
    }

    fn write_configurations(&self) -> anyhow::Result<()> {
        let boot = GuestImage::find()?;
        let boot = boot.kernel.parent().context("the kernel is in a folder")?.to_owned();
        let shared = self.folder.path().join("shared");
        for (name, agent) in &self.agents {
            let pki = self.folder.path().join("pki");
            let address = agent.host.address(Link::Data);
            let mut text = format!(
                "host = \"{name}\"\nlisten = [\"{address}:{AGENT_PORT}\"]\nstate_directory = \"{state}\"\n\
                 runtime_directory = \"{run}\"\nboot_directory = \"{boot}\"\nbridges = [\"br0\"]\n",
                state = agent.folder.join("state").display(),
                run = agent.folder.join("run").display(),
                boot = boot.display(),
            );
            for pool in POOLS {
                let directory = agent.folder.join("pools").join(pool);
                text += &format!("[pools.{pool}]\ndirectory = \"{}\"\n", directory.display());
            }
            text += &format!("[pools.shared]\ndirectory = \"{}\"\nshared = \"test\"\n", shared.display());
            text += &format!(
                "[adapter]\nkernel = \"{boot}/vmlinuz\"\ninitrd = \"{boot}/adapter.initrd\"\n",
                boot = boot.display()
            );
            text += &self.nats_section(&format!("host-{name}"));
            text += &format!(
                "[tls]\nca_file = \"{ca}\"\ncertificate_file = \"{chain}\"\nkey_file = \"{key}\"\n",
                ca = pki.join("ca.pem").display(),
                chain = pki.join(format!("host-{name}.pem")).display(),
                key = pki.join(format!("host-{name}-key.pem")).display(),
            );
            std::fs::write(agent.folder.join("agent.toml"), text)?;
        }
        let coordinator = format!("name = \"main\"\n{}", self.nats_section("coordinator-main"));
        std::fs::write(self.folder.path().join("coordinator.toml"), coordinator)?;
        let operator = format!("name = \"admin\"\n{}", self.nats_section("operator-admin"));
        std::fs::write(self.folder.path().join("sterna.toml"), operator)?;
        Ok(())
    }

    /// The folder of everything in it: configurations, logs, pools.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One host.
    pub fn agent(&self, name: &str) -> anyhow::Result<&Agent> {
        self.agents.get(name).with_context(|| format!("the fleet has no host {name}"))
    }

    /// Starts a host's agent, or starts it again, and waits until it can be asked.
    pub async fn start_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let agent = self.agents.get_mut(name).with_context(|| format!("the fleet has no host {name}"))?;
        agent.process = None;
        let mut command = agent.host.command(binary("sterna-agent"));
        command.arg("--config").arg(agent.folder.join("agent.toml")).env("RUST_LOG", "info,sterna_agent=debug");
        if let Some(programs) = &agent.programs {
            let rest = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{rest}", programs.display()));
        }
        let process = Process::spawn("sterna-agent", &mut command, &agent.folder.join("agent.log"))?;
        process.wait_for_line(" ready", START_WAIT).await?;
        agent.process = Some(process);
        // While the broker is away nobody can ask.
        match self.nats.process() {
            Some(_) => self.wait_for_agent(name, START_WAIT).await,
            None => Ok(()),
        }
    }

    /// Has a host's agent find programs in a directory before it looks elsewhere, and adds to its configuration; it is started again.
    pub async fn equip(&mut self, name: &str, programs: &Path, section: &str) -> anyhow::Result<()> {
        self.stop_agent(name).await?;
        let agent = self.agents.get_mut(name).with_context(|| format!("the fleet has no host {name}"))?;
        agent.programs = Some(programs.to_owned());
        let path = agent.configuration();
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, format!("{text}{section}"))?;
        self.start_agent(name).await
    }

    /// Kills a host's agent, as a crash would; its guests run on.
    pub fn kill_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let agent = self.agents.get_mut(name).with_context(|| format!("the fleet has no host {name}"))?;
        if let Some(mut process) = agent.process.take() {
            process.kill()?;
        }
        Ok(())
    }

    /// A host's agent falls out, and another takes its place.
    pub async fn replace_agent(&mut self, name: &str) -> anyhow::Result<()> {
        self.kill_agent(name)?;
        self.start_agent(name).await
    }

    /// The coordinator falls out likewise.
    pub async fn replace_coordinator(&mut self) -> anyhow::Result<()> {
        self.kill_coordinator()?;
        self.start_coordinator().await
    }

    /// Ends everything that runs on a host at once, as a power cut would. Its disks stay as they are.
    pub fn power_off(&mut self, name: &str) -> anyhow::Result<()> {
        self.kill_agent(name)?;
        for (pid, _) in self.agent(name)?.processes()? {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process has that number")?;
            rustix::process::kill_process(pid, Signal::KILL)?;
        }
        Ok(())
    }

    /// Ends a host's agent in good order, as an upgrade would; its guests run on.
    pub async fn stop_agent(&mut self, name: &str) -> anyhow::Result<()> {
        let agent = self.agents.get_mut(name).with_context(|| format!("the fleet has no host {name}"))?;
        if let Some(mut process) = agent.process.take() {
            process.signal(Signal::TERM)?;
            let status = process.wait(START_WAIT).await?;
            ensure!(status.success(), "the agent of {name} ended with {status}");
        }
        Ok(())
    }

    /// The process id of a host's agent.
    pub fn agent_process_id(&self, name: &str) -> anyhow::Result<u32> {
        self.agent(name)?
            .process
            .as_ref()
            .map(Process::id)
            .with_context(|| format!("the agent of {name} is not running"))
    }

    /// Starts the coordinator, or starts it again.
    pub async fn start_coordinator(&mut self) -> anyhow::Result<()> {
        self.coordinator = None;
        let mut command = self.control.command(binary("sterna-coordinator"));
        command.arg("--config").arg(self.folder.path().join("coordinator.toml")).env("RUST_LOG", "info");
        let process = Process::spawn("sterna-coordinator", &mut command, &self.folder.path().join("coordinator.log"))?;
        self.coordinator = Some(process);
        Ok(())
    }

    /// Kills the coordinator, as a crash would.
    pub fn kill_coordinator(&mut self) -> anyhow::Result<()> {
        if let Some(mut process) = self.coordinator.take() {
            process.signal(Signal::KILL)?;
            process.kill()?;
        }
        Ok(())
    }

    /// Runs the command line, and gives back whatever it says.
    pub async fn try_sterna(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = self.sterna_command(arguments);
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    }

    /// The command line, ready to run.
    pub fn sterna_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.control.command(binary("sterna"));
        command.args(arguments).env("STERNA_CONFIG", self.folder.path().join("sterna.toml")).env("NO_COLOR", "1");
        command
    }

    /// Runs the command line with `--output json`; it must succeed.
    pub async fn sterna(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let all = [&["--output", "json"], arguments].concat();
        let output = self.try_sterna(&all).await?;
        ensure!(
            output.status.success(),
            "sterna {arguments:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        if output.stdout.is_empty() {
            return Ok(Value::Null);
        }
        // A watched job prints one document a change; the last one is how it ended.
        let documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        let last = documents.last().context("the command line printed nothing")?;
        last.with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// A job as CIM has it.
    pub async fn cim_of(&self, job: &str) -> anyhow::Result<Value> {
        let output = self.try_sterna(&["--output", "cim", "job", "show", job]).await?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&output.stderr)))
    }

    async fn wait_for_hosts(&self, names: &[&str]) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + START_WAIT;
        loop {
            let online = match self.sterna(&["host", "list"]).await {
                Ok(hosts) => {
                    hosts.as_array().map_or(0, |hosts| hosts.iter().filter(|host| host["online"] == true).count())
                }
                Err(_) => 0,
            };
            if online == names.len() {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "only {online} of {} hosts are online; coordinator: {:?}",
                names.len(),
                self.coordinator.as_ref().map(Process::lines)
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Defines and starts a witness on a host.
    pub async fn start_witness(&mut self, host: &str, wish: &WitnessWish) -> anyhow::Result<Ipv4Addr> {
        let address = self.network.guest_address();
        self.define(host, wish.name, &wish.specification(address)?).await?;
        self.load_ballast(host, wish).await?;
        self.sterna(&["vm", "start", wish.name]).await?;
        self.wait_for_witness(wish.name, address).await?;
        Ok(address)
    }

    /// Fills the ballast of a VM that has just been defined.
    async fn load_ballast(&self, host: &str, wish: &WitnessWish) -> anyhow::Result<()> {
        if wish.ballast.is_empty() {
            return Ok(());
        }
        let vm = self.sterna(&["vm", "show", wish.name]).await?;
        let id = vm["report"]["spec"]["id"].as_str().context("the VM has no id")?;
        for (name, pool, format, mib) in &wish.ballast {
            let random = self.folder.path().join("random");
            let mut source = std::fs::File::open("/dev/urandom")?.take(mib << 20);
            std::io::copy(&mut source, &mut std::fs::File::create(&random)?)?;
            let image = self.agent(host)?.pool(pool).join(id).join(format!("{name}.{format}"));
            let filled = Command::new("qemu-img")
                .args(["convert", "-f", "raw", "-O", format, text(&random)?, text(&image)?])
                .output()?;
            ensure!(filled.status.success(), "qemu-img: {}", String::from_utf8_lossy(&filled.stderr));
            std::fs::remove_file(&random)?;
        }
        Ok(())
    }

    /// Defines a VM on a host, by its specification's text.
    pub async fn define(&self, host: &str, name: &str, specification: &str) -> anyhow::Result<()> {
        let file = self.folder.path().join(format!("{name}-{host}.toml"));
        std::fs::write(&file, specification)?;
        self.sterna(&["vm", "define", text(&file)?, "--host", host]).await.map(drop)
    }

    /// Waits until a witness answers.
    pub async fn wait_for_witness(&self, name: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + BOOT_WAIT;
        loop {
            match Witness::connect(&self.client, address, DEFAULT_PORT).await {
                Ok(_) => return Ok(()),
                Err(_) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(100)).await
                }
                Err(error) => {
                    let console = self.try_sterna(&["vm", "console", name, "--no-follow"]).await?;
                    let console = String::from_utf8_lossy(&console.stdout).into_owned();
                    return Err(error.context(format!("{name} did not boot; its console: {console}")));
                }
            }
        }
    }

    /// The last lines of every part's log: what to print when a test fails.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        let parts = self.agents.iter().map(|(name, agent)| (name.as_str(), agent.folder.join("agent.log")));
        for (name, log) in parts.chain([("coordinator", self.folder.path().join("coordinator.log"))]) {
            let content = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = content.lines().collect();
            logs += &format!("---- {name}\n{}\n", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        logs
    }
}

impl Agent {
    /// Files of VMs in a pool, relative to it.
    pub fn files(&self, pool: &str) -> Vec<PathBuf> {
        let root = self.folder.join("pools").join(pool);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                match entry.path() {
                    path if path.is_dir() => folders.push(path),
                    path => found.push(path.strip_prefix(&root).unwrap_or(&path).to_owned()),
                }
            }
        }
        found.sort();
        found
    }

    /// What is in its runtime directory: sockets and logs of guests and jobs.
    pub fn runtime_entries(&self) -> Vec<String> {
        let run = self.folder.join("run");
        let list = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let mut entries: Vec<String> = list(run.clone()).into_iter().filter(|name| name != "vm").collect();
        entries.extend(list(run.join("vm")).into_iter().map(|name| format!("vm/{name}")));
        entries
    }

    /// Its agent, while it runs.
    pub fn process(&self) -> Option<&Process> {
        self.process.as_ref()
    }

    /// Its agent's configuration.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    /// The directory of one of its pools.
    pub fn pool(&self, pool: &str) -> PathBuf {
        self.folder.join("pools").join(pool)
    }

    /// What runs in its namespace, by name, and the tap devices there.
    pub fn processes_and_taps(&self) -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let names = self.processes()?.into_iter().map(|(_, name)| name).collect();
        let links = self.host.command("ip").args(["-o", "link", "show", "type", "tun"]).output()?;
        let taps = String::from_utf8(links.stdout)?.lines().map(str::to_owned).collect();
        Ok((names, taps))
    }

    /// The files that its processes have open whose names begin so.
    pub fn open_files(&self, name: &str) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for (pid, _) in self.processes()?.into_iter().filter(|(_, of)| of.starts_with(name)) {
            let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
            files.extend(entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()));
        }
        Ok(files)
    }

    fn processes(&self) -> anyhow::Result<Vec<(u32, String)>> {
        let pids = Command::new("ip").args(["netns", "pids", self.host.namespace()]).output()?;
        let pids = String::from_utf8(pids.stdout)?;
        let named = pids.lines().filter_map(|pid| {
            let pid = pid.trim().parse().ok()?;
            // One that has ended meanwhile is not there.
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some((pid, name.trim().to_owned()))
        });
        Ok(named.collect())
    }

    /// Its agent's log.
    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }
}

/// What witness is wanted.
#[derive(Debug, Clone)]
pub struct WitnessWish {
    /// The VM's name.
    pub name: &'static str,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Of it, what the witness fills with its pattern.
    pub fill_mib: u64,
    /// MiB rewritten a second.
    pub rewrite_mib: u64,
    /// Virtual processors.
    pub vcpus: u16,
    /// Records a second and disk.
    pub records: u64,
    /// Name, pool, format, size in MiB.
    pub disks: Vec<(&'static str, &'static str, &'static str, u64)>,
    /// Whether no disk is ever more than one record ahead of another.
    pub lockstep: bool,
    /// Whether it is said to run a guest agent.
    pub guest_agent: bool,
    /// How long that takes to freeze the guest, in milliseconds; nothing where it does not answer at all.
    pub freeze_ms: Option<u64>,
    /// Likewise: disks full of random bytes, which the witness leaves alone.
    pub ballast: Vec<(&'static str, &'static str, &'static str, u64)>,
}

impl WitnessWish {
    /// A small witness with a raw and a qcow2 disk.
    pub fn small(name: &'static str) -> Self {
        Self {
            name,
            memory_mib: 192,
            fill_mib: 48,
            rewrite_mib: 8,
            vcpus: 1,
            records: 50,
            disks: vec![("root", "fast", "raw", 64), ("data", "bulk", "qcow2", 64)],
            lockstep: false,
            guest_agent: false,
            freeze_ms: Some(0),
            ballast: Vec::new(),
        }
    }

    /// Its specification's text, with that address.
    pub fn specification(&self, address: Ipv4Addr) -> anyhow::Result<String> {
        let image = GuestImage::find()?;
        let file = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let [.., c, d] = address.octets();
        let mut text = format!(
            "name = \"{name}\"\nid = \"{id}\"\nmemory = \"{memory} MiB\"\nvcpus = {vcpus}\nguest_agent = {guest_agent}\n\n[kernel]\n\
             image = \"{kernel}\"\ninitrd = \"{initrd}\"\nappend = \"console=ttyS0 quiet panic=-1 witness.seed=7 \
             witness.memory={fill} witness.rewrite={rewrite} witness.disks={disks} witness.records={records} \
             witness.lockstep={lockstep} witness.agent={agent} witness.freeze={freeze} witness.ip={address}/24\"\n\n[[nic]]\nmac = \"52:54:00:00:{c:02x}:{d:02x}\"\nbridge = \"br0\"\n",
            name = self.name,
            id = uuid::Uuid::new_v4(),
            memory = self.memory_mib,
            vcpus = self.vcpus,
            guest_agent = self.guest_agent,
            kernel = file(&image.kernel),
            initrd = file(&image.initrd),
            fill = self.fill_mib,
            rewrite = self.rewrite_mib,
            disks = self.disks.len(),
            records = self.records,
            lockstep = u8::from(self.lockstep),
            agent = u8::from(self.guest_agent && self.freeze_ms.is_some()),
            freeze = self.freeze_ms.unwrap_or(0),
        );
        for (name, pool, format, size) in self.disks.iter().chain(&self.ballast) {
            text += &format!(
                "\n[[disk]]\nname = \"{name}\"\npool = \"{pool}\"\nformat = \"{format}\"\nsize = \"{size} MiB\"\n"
            );
        }
        Ok(text)
    }
}

/// A program of the workspace, beside the test program.
pub fn binary(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    let folders = here.ancestors().skip(1).take(3);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    // Where it is missing the attempt to run it tells.
    found.unwrap_or_else(|| name.into())
}

/// Runs the command line on this machine, without a fleet.
fn sterna<'a>(arguments: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
    let output =
        Command::new(binary("sterna")).args(arguments).output().context("sterna cannot be run; build it first")?;
    ensure!(output.status.success(), "sterna: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path of the test is not text")
}
