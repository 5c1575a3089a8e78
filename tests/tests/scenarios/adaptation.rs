//! Clones of a real Debian: who the clone says that it is, and what is left where its adaptation is cut.

#![expect(clippy::print_stderr, reason = "figures are for whoever reads the output of a test")]

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sterna_tests::debian::{self, HOSTNAME, Identity, Ssh};
use sterna_tests::dhcp::{Dhcp, Lease};
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::moves::{begins, ended, step};
use sterna_tests::namespace::Link;
use sterna_tests::replicas::cycle;
use sterna_tests::scenario::{eventually, on_fleet};

const WAIT: Duration = Duration::from_secs(120);
/// The first address that is given to a clone.
const CLONES: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 200);

fn notices(job: &Value) -> Vec<&str> {
    job["notices"].as_array().into_iter().flatten().filter_map(|notice| notice["text"].as_str()).collect()
}

/// Has a host's helper guest run these scripts in every clone, and its agent begin anew with that.
async fn with_hooks(fleet: &mut Fleet, host: &str, more: &str, hooks: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    let folder = fleet.folder().join(format!("hooks-of-{host}"));
    fs::create_dir_all(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    for (name, script) in hooks {
        fs::write(folder.join(name), script)?;
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755))?;
    }
    let configuration = fleet.agent(host)?.configuration();
    let text = fs::read_to_string(&configuration)?;
    let section = format!("[adapter]\nhooks = \"{}\"\n{more}", folder.display());
    let (before, after) = text.split_once("[adapter]\n").context("the host has a helper guest")?;
    let rest: Vec<&str> = after.lines().filter(|line| !line.starts_with("hooks")).collect();
    fleet.stop_agent(host).await?;
    fs::write(&configuration, format!("{before}{section}{}\n", rest.join("\n")))?;
    fleet.start_agent(host).await?;
    Ok(folder)
}

/// Whether a VM of a host has a seed among its images.
fn has_seed(fleet: &Fleet, host: &str) -> anyhow::Result<bool> {
    Ok(fleet.agent(host)?.files("fast").iter().any(|file| file.ends_with("cidata.raw")))
}

/// What cloud-init in a clone must have made of its seed.
async fn seed_is_read(ssh: &Ssh, clone: &Identity, lease: &Lease, sources: &str) -> anyhow::Result<()> {
    let status = ssh.run("cloud-init status --wait").await?;
    let result: Value = serde_json::from_str(&ssh.run("cat /run/cloud-init/result.json").await?)?;
    let complaints = ssh.run("grep --extended-regexp 'WARN|ERROR|Traceback' /var/log/cloud-init.log || true").await?;
    let source = result["v1"]["datasource"].as_str().unwrap_or_default();
    let read = status.trim_end().ends_with("status: done") && source.starts_with("DataSourceNoCloud [seed=/dev/vdb]");
    ensure!(read && result["v1"]["errors"] == json!([]) && complaints.is_empty(), "{status} {result:#} {complaints}");
    let instance: Value = serde_json::from_str(&ssh.run("cloud-init query v1").await?)?;
    ensure!(instance["instance_id"] == clone.uuid && instance["platform"] == "nocloud", "{instance:#}");
    // By its own addresses, and by nothing that it has from the VM that it is a clone of.
    ensure!(lease.mac == clone.mac && lease.identifier == format!("01:{}", clone.mac), "{lease:?} {clone:?}");
    let network = ssh.run("cat /etc/netplan/*; ip -4 -oneline address show scope global").await?;
    let is_dynamic = |line: &str| line.contains(&format!("inet {}/24 ", lease.address)) && line.contains(" dynamic ");
    ensure!(network.contains(&clone.mac) && network.lines().last().is_some_and(is_dynamic), "{network}");
    ensure!(!network.contains("52:54:00:00:00:64") && network.matches(" inet ").count() == 1, "{network}");
    // Who may log in, as ssh has shown, and where packages come from stays as it is.
    let stays = ssh.run("getent passwd debian || true; cat /etc/apt/sources.list").await?;
    ensure!(stays == sources, "{stays}");
    Ok(())
}

#[tokio::test]
async fn a_clone_of_a_debian_guest_is_somebody_else() {
    on_fleet(somebody_else).await;
}

async fn somebody_else(fleet: &mut Fleet) -> anyhow::Result<()> {
    let marks = "#!/bin/sh\nset -e\necho \"$STERNA_HOSTNAME $STERNA_MACHINE_ID\" > /etc/marked\n\
                 cat /etc/ssh/ssh_host_*_key.pub >> /etc/marked\nsystemctl is-enabled systemd-networkd\n";
    with_hooks(fleet, "bravo", "", &[("10-mark", marks)]).await?;
    debian::define(fleet, "alpha", "web").await?;
    fleet.sterna(&["vm", "start", "web"]).await?;
    let to_web = Ssh::new(&fleet.client, debian::ADDRESS, fleet.folder())?;
    to_web.answers(fleet, "web").await?;
    let web = to_web.identity().await?;
    ensure!(web.hostname == HOSTNAME && web.host_keys.len() == 3, "{web:?}");
    let sources = to_web.run("cat /etc/apt/sources.list; sync").await?;
    let cycle = cycle(fleet, "web", "bravo", &[]).await?;
    eprintln!("the cycle read {:?} bytes", step(&cycle, "copy_disks").map(|step| step["bytes_total"].clone()));

    // Nobody but its own host reaches the clone.
    let bravo = fleet.agent("bravo")?.host.clone();
    bravo.cut(Link::Lan)?;
    let mut dhcp = Dhcp::serve(&bravo, CLONES)?;
    let arguments = ["clone", "create", "web", "--name", "Trial_1", "--network", "same", "--start"];
    let job = fleet.sterna(&[&arguments[..], &["--hostname", "shop.lab.example"]].concat()).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    eprintln!("adapted in {} s: {:#?}", step(&job, "adapt_os").context("the step")?["seconds"], notices(&job));
    for told in [
        "the system on vda1 is adapted: Debian GNU/Linux 12",
        "host name: shop.lab.example, which was original",
        "hook: 10-mark: enabled",
        "disk cidata is a seed for cloud-init: instance ",
    ] {
        ensure!(notices(&job).iter().any(|text| text.starts_with(told)), "{told}: {job:#}");
    }
    let started = Instant::now();
    let (to_clone, lease) = debian::address_taken(fleet, &bravo, &mut dhcp, "Trial_1").await?;
    let clone = to_clone.identity().await?;
    ensure!(clone.hostname == "shop.lab.example", "{clone:?}");
    let told = format!("machine id: {}, in /etc/machine-id", clone.machine_id);
    ensure!(notices(&job).iter().any(|text| text.starts_with(&told)), "{told}: {job:#}");
    ensure!(clone.machine_id != web.machine_id && clone.differs_in_what_a_seed_says(&web), "{web:#?} {clone:#?}");
    let kept = to_clone.run("cat /etc/fstab /etc/hosts; ls /etc/udev/rules.d; mount | grep ' / '").await?;
    let uuid = to_clone.run("/sbin/blkid -o value -s UUID /dev/vda1").await?;
    let root = format!("\nUUID={}\t/\text4\t", uuid.trim());
    ensure!(!uuid.trim().is_empty() && kept.contains(&root) && !kept.contains("\n/dev/vda1\t"), "{uuid} {kept}");
    ensure!(kept.contains("shop.lab.example\tshop") && !kept.contains("original"), "{kept}");
    ensure!(!kept.contains("persistent-net") && kept.contains("/dev/vda1 on / type ext4 (rw"), "{kept}");
    // On the disk, below what the running system has mounted there.
    let marked = to_clone.run("cat /etc/marked; mount --bind / /mnt && ls /mnt/run && umount /mnt").await?;
    let mark = format!("shop.lab.example {}\n", clone.machine_id);
    ensure!(marked.starts_with(&mark) && !marked.contains("10-mark"), "of the hook itself nothing stays: {marked}");
    let kinds = web.host_keys.iter().filter_map(|key| key.split_once(' ')).map(|(kind, _)| kind);
    let has_kept = |kind: &str| clone.host_keys.iter().any(|key| key.starts_with(kind) && marked.contains(key));
    ensure!(kinds.clone().all(has_kept), "the keys that hooks have seen are those that it has: {clone:#?} {marked}");
    let seed = to_clone
        .run("/sbin/blkid -o value -s LABEL -s TYPE /dev/vdb; cat /sys/block/vdb/ro /sys/block/vdb/size")
        .await?;
    ensure!(seed == "CIDATA\nvfat\n1\n2048\n", "{seed}");
    seed_is_read(&to_clone, &clone, &lease, &sources).await?;
    eprintln!("booted, told and looked through in {:?}", started.elapsed());
    eventually("its login prompt", WAIT, async || {
        Ok(debian::console(fleet, "Trial_1").await?.contains("shop login:").then_some(()))
    })
    .await?;
    ensure!(to_web.identity().await? == web, "the VM that it is a clone of is who it was");
    Ok(())
}

#[tokio::test]
async fn a_clone_whose_system_is_left_as_it_is_is_told_who_it_is_by_its_seed() {
    on_fleet(told_by_seed).await;
}

async fn told_by_seed(fleet: &mut Fleet) -> anyhow::Result<()> {
    debian::define(fleet, "alpha", "web").await?;
    let sources = in_disk(fleet, "cat etc/apt/sources.list")?;
    let [machine_id, key] = ["machine-id", "ssh/ssh_host_ed25519_key.pub"].map(|file| format!("cat etc/{file}"));
    let (machine_id, key) = (in_disk(fleet, &machine_id)?, in_disk(fleet, &key)?);
    cycle(fleet, "web", "bravo", &[]).await?;
    let bravo = fleet.agent("bravo")?.host.clone();
    let mut dhcp = Dhcp::serve(&bravo, CLONES)?;
    let arguments = ["clone", "create", "web", "--name", "Trial_2", "--network", "same", "--start"];
    let alone = ["--skip-os-adaptation", "--seed", "always", "--hostname", "shop2.lab.example"];
    let job = fleet.sterna(&[&arguments[..], &alone].concat()).await?;
    ensure!(job["state"] == "completed" && step(&job, "adapt_os").is_none(), "{job:#}");
    let (to_clone, lease) = debian::address_taken(fleet, &bravo, &mut dhcp, "Trial_2").await?;
    let clone = to_clone.identity().await?;
    ensure!(clone.hostname == "shop2.lab.example", "{clone:?}");
    let has_key = |known: &String| key.starts_with(known);
    ensure!(clone.host_keys.len() >= 3 && key.starts_with("ssh-ed25519 "), "{clone:#?} {key}");
    ensure!(!clone.host_keys.iter().any(has_key), "{clone:#?} {key}");
    // What cloud-init does not know of is as it was.
    ensure!(clone.machine_id == machine_id.trim() && !machine_id.trim().is_empty(), "{clone:#?} {machine_id}");
    seed_is_read(&to_clone, &clone, &lease, &sources).await?;
    let found = to_clone.run("getent hosts shop2.lab.example").await?;
    ensure!(found.starts_with("127.0.1.1 "), "it finds itself by its name: {found}");
    Ok(())
}

#[tokio::test]
async fn a_clone_that_is_ended_while_its_system_is_adapted_leaves_nothing() {
    on_fleet(ends).await;
}

async fn ends(fleet: &mut Fleet) -> anyhow::Result<()> {
    debian::define(fleet, "alpha", "web").await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let before = files(fleet)?;
    ensure!(!before.is_empty(), "the replica has files");
    for fault in ["cancel", "kill", "agent", "coordinator"] {
        let job = fleet.sterna(&["clone", "create", "web", "--name", "copy", "--start", "--detach"]).await?;
        let job = job["job"].as_str().context("an id")?.to_owned();
        begins(fleet, "bravo", &job, "adapt_os").await?;
        // In the middle: the clone's disks are mounted in the helper guest, and changed.
        let agent = fleet.agent("bravo")?.process().context("the agent runs")?;
        agent.wait_for_line(&format!("adapted job={job} text=host name"), WAIT).await?;
        let shown = fleet.try_sterna(&["clone", "show", &job, "--output", "google"]).await?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(shown.contains("\"ADAPTING_OS\"") && shown.contains("\"adaptingOs\""), "{fault}: {shown}");
        let expected = match fault {
            "cancel" => {
                fleet.sterna(&["clone", "cancel", &job]).await?;
                "terminated"
            }
            "kill" => {
                fleet.sterna(&["job", "kill", &job]).await?;
                "killed"
            }
            "agent" => {
                fleet.replace_agent("bravo").await?;
                "exception"
            }
            _ => {
                fleet.replace_coordinator().await?;
                "completed"
            }
        };
        let over = ended(fleet, &job, WAIT).await?;
        ensure!(over["state"] == expected, "{fault}: {over:#}");
        if expected == "completed" {
            // The agent needs no coordinator, and nothing that it told is lost.
            for told in ["ssh host keys: made anew", "host name: copy, which was original"] {
                ensure!(notices(&over).iter().any(|text| text.starts_with(told)), "{told}: {over:#}");
            }
            ensure!(has_seed(fleet, "bravo")?, "it has cloud-init");
            fleet.sterna(&["vm", "stop", "copy", "--force"]).await?;
            fleet.sterna(&["vm", "delete", "copy", "--delete-disks", "--yes"]).await?;
        }
        eventually(&format!("{fault}: nothing is left of the clone"), WAIT, async || {
            let agent = fleet.agent("bravo")?;
            let (processes, taps) = agent.processes_and_taps()?;
            let guests = processes.iter().filter(|name| name.starts_with("qemu")).count();
            let clean = guests == 0 && taps.is_empty() && agent.runtime_entries().is_empty();
            Ok((clean && agent.files("fast").len() == before.len()).then_some(()))
        })
        .await?;
        ensure!(files(fleet)? == before, "{fault}: the replica is not as it was");
    }
    Ok(())
}

#[tokio::test]
async fn a_hook_that_fails_fails_the_clone_by_its_name_unless_it_may() {
    on_fleet(hooks).await;
}

async fn hooks(fleet: &mut Fleet) -> anyhow::Result<()> {
    let hooks = [
        ("10-fine", "#!/bin/sh\necho begun; echo fine\n"),
        ("20-bad", "#!/bin/sh\necho no space >&2; exit 3\n"),
        ("30-later", "#!/bin/sh\ntest -x /bin/sh && test ! -e /no-such && cat /proc/sys/kernel/ostype\n"),
    ];
    let folder = with_hooks(fleet, "bravo", "", &hooks).await?;
    debian::define(fleet, "alpha", "web").await?;
    switch_cloud_init_off(fleet)?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let before = files(fleet)?;
    let create = ["clone", "create", "web", "--name", "copy", "--detach"];
    let failed = async |fleet: &Fleet, because: &str| {
        let job = fleet.sterna(&create).await?;
        let over = ended(fleet, job["job"].as_str().context("an id")?, WAIT).await?;
        let failure = over["failure"].to_string();
        ensure!(over["state"] == "exception" && failure.contains(because), "{because}: {over:#}");
        ensure!(over["failure"]["code"] == "os_adaptation", "{over:#}");
        ensure!(files(fleet)? == before, "{because}: something is left, or the replica is not as it was");
        anyhow::Ok(over)
    };
    let over = failed(fleet, "hook 20-bad: it ended with exit status: 3: no space").await?;
    ensure!(notices(&over).contains(&"hook: 10-fine: fine") && !over.to_string().contains("30-later"), "{over:#}");
    symlink(folder.join("10-fine"), folder.join("40-link"))?;
    failed(fleet, "40-link is no plain file").await?;
    fs::remove_file(folder.join("40-link"))?;
    fs::set_permissions(folder.join("10-fine"), fs::Permissions::from_mode(0o644))?;
    with_hooks(fleet, "bravo", "hooks_may_fail = true\n", &[]).await?;
    let job = fleet.sterna(&create[..5]).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    let bad = "hook: 20-bad: it ended with exit status: 3: no space; the configuration lets it fail";
    for told in ["hook 10-fine is left out: nobody may execute it", bad, "hook: 30-later: Linux"] {
        ensure!(notices(&job).contains(&told), "{told}: {job:#}");
    }
    ensure!(!has_seed(fleet, "bravo")?, "its cloud-init is switched off");
    Ok(())
}

/// As an administrator would.
fn switch_cloud_init_off(fleet: &Fleet) -> anyhow::Result<()> {
    let told = in_disk(fleet, "write /dev/null etc/cloud/cloud-init.disabled")?;
    ensure!(told.contains("Allocated inode"), "{told}");
    Ok(())
}

/// Has debugfs do something in the file system of a VM that is defined and does not run; what it prints. It says that it went well,
/// whatever came of it.
fn in_disk(fleet: &Fleet, request: &str) -> anyhow::Result<String> {
    let alpha = fleet.agent("alpha")?;
    let disk = alpha.files("fast").into_iter().find(|file| file.ends_with("root.raw")).context("its disk")?;
    // Its one partition begins after the first MiB.
    let disk = format!("{}?offset=1048576", alpha.pool("fast").join(disk).display());
    let output = Command::new("/sbin/debugfs").args(["-w", "-R", request, &disk]).output()?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The files in the replica's pool, each with a digest of what it holds.
fn files(fleet: &Fleet) -> anyhow::Result<BTreeMap<PathBuf, String>> {
    let agent = fleet.agent("bravo")?;
    let digest = |file: PathBuf| {
        let output = Command::new("sha256sum").arg(agent.pool("fast").join(&file)).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok((file, text.split_whitespace().next().context("a digest")?.to_owned()))
    };
    agent.files("fast").into_iter().map(digest).collect()
}

#[tokio::test]
async fn a_system_that_is_not_recognised_is_left_as_it_is() {
    on_fleet(not_recognised).await;
}

async fn not_recognised(fleet: &mut Fleet) -> anyhow::Result<()> {
    fleet.start_witness("alpha", &WitnessWish::small("web")).await?;
    cycle(fleet, "web", "bravo", &[]).await?;
    let job = fleet.sterna(&["clone", "create", "web", "--name", "copy", "--start"]).await?;
    ensure!(job["state"] == "completed", "{job:#}");
    ensure!(
        notices(&job).iter().any(|text| text.starts_with("the system is left as it is: no file system")),
        "{job:#}"
    );
    eprintln!("looked at in {} s", step(&job, "adapt_os").context("the step")?["seconds"]);
    // Without a helper guest there is an answer that says so, and another way.
    let configuration = fleet.agent("bravo")?.configuration();
    let text = fs::read_to_string(&configuration)?;
    fleet.stop_agent("bravo").await?;
    fs::write(&configuration, text.replace("adapter.initrd", "no-such.initrd"))?;
    fleet.start_agent("bravo").await?;
    let refused = fleet.try_sterna(&["clone", "create", "web", "--name", "other"]).await?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && words.contains("--skip-os-adaptation"), "{words}");
    ensure!(!has_seed(fleet, "bravo")?, "nobody knows whether it has cloud-init");
    let arguments =
        ["clone", "create", "web", "--name", "other", "--skip-os-adaptation", "--seed", "always", "--start"];
    let job = fleet.sterna(&arguments).await?;
    ensure!(job["state"] == "completed" && step(&job, "adapt_os").is_none(), "{job:#}");
    // A seed goes where its VM goes, and goes when its VM does.
    let seed = |fleet: &Fleet, host: &str| {
        let agent = fleet.agent(host)?;
        let found = agent.files("fast").into_iter().find(|file| file.ends_with("cidata.raw")).context("a seed")?;
        anyhow::Ok(fs::read(agent.pool("fast").join(found))?)
    };
    let made = seed(fleet, "bravo")?;
    let moved = fleet.sterna(&["migrate", "other", "--to", "alpha"]).await?;
    ensure!(moved["state"] == "completed", "{moved:#}");
    ensure!(seed(fleet, "alpha")? == made && !has_seed(fleet, "bravo")?, "it is as it was, and moved");
    let again = cycle(fleet, "other", "bravo", &[]).await?;
    ensure!(again["state"] == "completed", "{again:#}");
    fleet.sterna(&["vm", "stop", "other", "--force"]).await?;
    fleet.sterna(&["vm", "delete", "other", "--delete-disks", "--yes"]).await?;
    ensure!(!has_seed(fleet, "alpha")?, "it is gone");
    Ok(())
}
