//! Settings of a move by the names of Msvm_VirtualSystemMigrationSettingData: taken, refused, and in the documents.

use sterna_shared::job::{CpuCapping, JobKind, MoveMode, MoveRequest, Policy, StorageWish};
use sterna_shared::units::Bandwidth;
use sterna_shared::view::cim::{BandwidthUnit, SETTINGS, SettingFault, Settings};

use super::jobs;

fn applied(settings: &[(&str, &str)]) -> Result<(MoveRequest, Policy), SettingFault> {
    let mut request = MoveRequest::of(&jobs::plan(MoveMode::Live, true));
    let mut policy = Policy::default();
    let mut target = Settings { request: &mut request, policy: &mut policy, unit: BandwidthUnit::default() };
    settings.iter().try_for_each(|(name, value)| target.apply(name, value))?;
    Ok((request, policy))
}

#[test]
fn settings_change_what_they_name() {
    let (request, policy) = applied(&[
        ("Priority", "7"),
        ("BandwidthUnit", "Mbit/s"),
        ("Bandwidth", "400"),
        ("CPUCappingMagnitude", "2"),
        ("CancelIfBlackoutThresholdExceeded", "false"),
        ("EnableCompression", "true"),
        ("DestinationIPAddressList", "192.0.2.7, 2001:db8::7"),
        ("AvoidRemovingVHDs", "true"),
        ("MigrationType", "32768"),
    ])
    .expect("settings");
    let settings = &request.settings;
    assert_eq!((policy.priority, request.bandwidth), (7, Some(Bandwidth(50_000_000))));
    assert_eq!((settings.cpu_capping, settings.exceed_blackout), (CpuCapping::High, true));
    assert_eq!((settings.compress_memory, settings.keep_source_images), (true, true));
    assert_eq!(
        settings.addresses,
        ["192.0.2.7", "2001:db8::7"].map(|ip| ip.parse::<std::net::IpAddr>().expect("an address"))
    );
    assert_eq!(request.storage, StorageWish::None);
    let kind = |value| applied(&[("MigrationType", value)]).expect("a type").0.kind;
    assert_eq!([kind("32771"), kind("32770"), kind("32772")], [JobKind::Move, JobKind::Stage, JobKind::DeepCheck]);
}

#[test]
fn what_cannot_be_done_is_refused_by_name_and_with_its_reason() {
    for (name, value, reason) in [
        ("TransportType", "32768", "SMB"),
        ("TransportType", "5", "clear"),
        ("AllowOverwriteExistingFile", "true", "another VM's disk"),
        ("UnmanagedVhds", "/x.vhdx", "specification"),
        ("RemoveSourceUnmanagedVhds", "true", "specification"),
        ("Bandwidth", "99999999999999999999", "number"),
        ("DestinationIPAddressList", "beta", "addresses"),
        ("CPUCappingMagnitude", "3", "high"),
    ] {
        let fault = applied(&[(name, value)]).expect_err(name).to_string();
        assert!(fault.contains(name) && fault.contains(value) && fault.contains(reason), "{fault}");
    }
    assert!(matches!(applied(&[("Colour", "red")]), Err(SettingFault::Unknown { .. })));
}

#[test]
fn every_setting_has_its_row_and_is_taken_or_refused() {
    let document = std::fs::read_to_string("../docs/job-model.md").expect("the document");
    for setting in SETTINGS {
        let row = format!("| `{}` | {} |", setting.name, setting.takes);
        assert!(document.contains(&row), "docs/job-model.md lacks the row {row}");
    }
}
