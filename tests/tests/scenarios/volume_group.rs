//! A pool that is a volume group: a running guest moves into it, out of it, and on to another host.

#[path = "../../../agent/tests/nbd/lvm.rs"]
mod lvm;

use anyhow::ensure;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::scenario::{Watched, expect_nothing_left, migrate, on_fleet, vm};

use lvm::{Group, OLD, run};

const GROUP_SIZE: u64 = 256 << 20;

#[tokio::test]
async fn a_guest_moves_onto_logical_volumes_and_off_them() {
    let Some(group) = Group::make(GROUP_SIZE) else { return };
    on_fleet(async |fleet: &mut Fleet| onto_and_off(fleet, &group).await).await;
}

async fn onto_and_off(fleet: &mut Fleet, group: &Group) -> anyhow::Result<()> {
    fleet.equip("bravo", &group.programs, &format!("[pools.block]\nvolume_group = \"{}\"\n", group.name)).await?;
    // The second is no whole number of extents, and mostly a hole.
    let disks = vec![("root", "fast", "raw", 64), ("data", "bulk", "qcow2", 66)];
    let mut watched = Watched::start(fleet, "alpha", &WitnessWish { disks, ..WitnessWish::small("witness") }).await?;
    let id = vm(fleet, "witness").await?["report"]["spec"]["id"].as_str().unwrap_or_default().to_owned();

    let places = ["--disk", "root=block", "--disk", "data=block"];
    let refused = fleet.try_sterna(&[&["migrate", "witness", "--to", "bravo"], &places[..]].concat()).await?;
    let told = String::from_utf8(refused.stderr)?;
    ensure!(!refused.status.success() && told.contains("disk data would be qcow2"), "{told}");
    ensure!(group.volumes().is_empty(), "a refused move leaves nothing");

    let raw = ["--disk", "root=block:raw", "--disk", "data=block:raw"];
    migrate(fleet, &[&["witness", "--to", "bravo"], &raw[..]].concat()).await?;
    watched.prove().await?;
    ensure!(group.volumes() == [format!("sterna-{id}-data"), format!("sterna-{id}-root")], "{:?}", group.volumes());
    expect_nothing_left(fleet, "alpha")?;

    // Off a volume and onto it again, under the guest; what is freed is spoilt by what the next volume then gets.
    migrate(fleet, &["witness", "--storage-only", "--disk", "data=bulk:qcow2"]).await?;
    watched.prove().await?;
    ensure!(group.volumes() == [format!("sterna-{id}-root")], "{:?}", group.volumes());
    migrate(fleet, &["witness", "--storage-only", "--disk", "data=block:raw"]).await?;
    watched.prove().await?;
    ensure!(group.volumes().len() == 2, "{:?}", group.volumes());

    migrate(fleet, &["witness", "--to", "alpha", "--disk", "root=fast", "--disk", "data=bulk:qcow2"]).await?;
    watched.prove().await?;
    expect_nothing_left(fleet, "bravo")?;
    ensure!(group.volumes().is_empty(), "{:?}", group.volumes());

    // A VM that is defined there finds zeroes, and not what was there before it.
    group.spoil();
    let wish = WitnessWish { disks: vec![("root", "block", "raw", 66)], ..WitnessWish::small("fresh") };
    let specification = wish.specification("10.9.9.9".parse()?)?;
    fleet.define("bravo", "fresh", &specification).await?;
    let device = format!("/dev/{}/{}", group.name, group.volumes().first().map_or("", String::as_str));
    let content = std::fs::read(&device)?;
    ensure!(content.len() == 68 << 20 && content.iter().all(|byte| *byte == 0), "{device} shows what was there before");
    // What is not Sterna's stays, also beside what goes.
    run(group.lvm().args(["lvcreate", "--yes", "--name", "other", "--size", "8m", &group.name]))
        .map_err(anyhow::Error::msg)?;
    fleet.sterna(&["vm", "delete", "fresh", "--delete-disks", "--yes"]).await?;
    ensure!(group.volumes() == ["other"], "{:?}", group.volumes());
    ensure!(std::fs::read(format!("/dev/{}/other", group.name))?.contains(&OLD), "it was not written to");
    Ok(())
}
