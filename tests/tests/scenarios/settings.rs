//! Settings of a move by the names of CIM, on real guests: what they change, and what is refused by name.

use anyhow::ensure;
use sterna_tests::fleet::{Fleet, WitnessWish};
use sterna_tests::scenario::{Watched, expect_nothing_left, migrate, on_fleet};

#[tokio::test]
async fn settings_of_a_move_do_what_they_say() {
    on_fleet(settings).await;
}

async fn settings(fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut watched = Watched::start(fleet, "alpha", &WitnessWish::small("witness")).await?;
    for (setting, reason) in [
        ("TransportType=32768", "SMB"),
        ("AllowOverwriteExistingFile=true", "another VM's disk"),
        ("Colour=red", "no setting Colour"),
    ] {
        let refused = fleet.try_sterna(&["migrate", "witness", "--to", "bravo", "--setting", setting]).await?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &String::from_utf8_lossy(&refused.stdout);
        ensure!(refused.status.code() == Some(2) && said.contains(reason), "{setting}: {said}");
    }
    let elsewhere = "DestinationIPAddressList=192.0.2.1";
    let refused = fleet.try_sterna(&["migrate", "witness", "--to", "bravo", "--setting", elsewhere]).await?;
    ensure!(refused.status.code() == Some(3), "an address that the target does not advertise: {refused:?}");

    let host = fleet.sterna(&["host", "show", "bravo"]).await?;
    let address = host["inventory"]["addresses"][0].as_str().and_then(|address| address.rsplit_once(':'));
    let ip = address.map_or_else(|| panic!("{host:#}"), |(ip, _)| ip.to_owned());
    let wishes = [
        "EnableCompression=true".to_owned(),
        "CPUCappingMagnitude=2".to_owned(),
        "CancelIfBlackoutThresholdExceeded=false".to_owned(),
        "RetainVhdCopiesOnSource=true".to_owned(),
        format!("DestinationIPAddressList={ip}"),
    ];
    let mut arguments = vec!["witness", "--to", "bravo"];
    wishes.iter().for_each(|wish| arguments.extend(["--setting", wish.as_str()]));
    let job = migrate(fleet, &arguments).await?;
    watched.prove().await?;
    // The source keeps its images, under names that are no disk's.
    let mark = format!(".kept-{}", job["job"].as_str().unwrap_or_default());
    for pool in ["fast", "bulk"] {
        let files = fleet.agent("alpha")?.files(pool);
        let kept = files.iter().filter(|file| file.to_string_lossy().ends_with(&mark)).count();
        ensure!(kept == 1 && files.len() == 1, "pool {pool} of alpha has {files:?}");
    }
    // They are in nobody's way.
    migrate(fleet, &["witness", "--to", "alpha"]).await?;
    watched.prove().await?;
    expect_nothing_left(fleet, "bravo")
}
