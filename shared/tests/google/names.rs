//! Names of resources: what is made is read again, and nothing else is.

use sterna_shared::job::{JobStatus, Policy};
use sterna_shared::view::google::{CloneJobName, GroupName, InvalidName, MigratingVmName, ReplicationCycleName};

use super::jobs::{self, NAME};

#[test]
fn names_are_read_as_they_are_made() {
    let name = MigratingVmName::of(&JobStatus::planned(jobs::cycle_plan(10)));
    assert_eq!((name.to_string().as_str(), NAME.parse()), (NAME, Ok(name.clone())));
    let clone = name.clone_job(jobs::job(1));
    assert_eq!(clone.to_string(), format!("{NAME}/cloneJobs/0197c0de-0000-7000-8000-000000000001"));
    assert_eq!(clone.to_string().parse(), Ok(clone));
    let cutover = name.cutover_job(jobs::job(3));
    assert_eq!(cutover.to_string(), format!("{NAME}/cutoverJobs/0197c0de-0000-7000-8000-000000000003"));
    assert_eq!(cutover.to_string().parse(), Ok(cutover));
    let cycle = name.cycle(jobs::job(2));
    assert_eq!(cycle.to_string(), format!("{NAME}/replicationCycles/0197c0de-0000-7000-8000-000000000002"));
    assert_eq!(cycle.to_string().parse(), Ok(cycle));
}

#[test]
fn any_group_has_a_name_that_is_one_part() {
    let name = jobs::name();
    assert_eq!(name.group(&Policy::default()), None);
    for (group, part) in [
        ("night", "night"),
        ("night/shift", "night%2Fshift"),
        ("..", "%2E%2E"),
        ("100 %", "100%20%25"),
        ("Nächte", "N%C3%A4chte"),
    ] {
        let group = name.group(&Policy { group: Some(group.to_owned()), ..Policy::default() }).expect("a group");
        assert_eq!(group.to_string(), format!("projects/sterna/locations/bravo/groups/{part}"));
        assert_eq!(group.to_string().parse(), Ok(group));
    }
    for part in ["", "..", "a/b", "%2f", "%2", "%", "%zz", "%FF", "a b", "%6eight"] {
        let text = format!("projects/sterna/locations/bravo/groups/{part}");
        assert!(text.parse::<GroupName>().is_err(), "{part:?}");
    }
}

#[test]
fn hostile_names_are_refused() {
    let job = jobs::job(1).to_string();
    let long = format!("{NAME}{}", "/x".repeat(100_000));
    let part = |vm: &str| format!("projects/sterna/locations/bravo/sources/alpha/migratingVms/{vm}");
    for text in [
        "",
        "/",
        "web",
        &NAME[1..],
        &format!("/{NAME}"),
        &format!("{NAME}/"),
        &format!(" {NAME}"),
        &format!("{NAME}\n"),
        &NAME.replace("sterna", "other"),
        &NAME.replace("projects", "Projects"),
        &NAME.replace("bravo", ""),
        &NAME.replace("bravo", ".."),
        &NAME.replace("alpha", "*"),
        &NAME.replace("alpha", "alpha/../bravo"),
        &part("web%2F..%2Fdb"),
        &part("-rf"),
        &part("a b"),
        &part("web\u{0}"),
        &part("wéb"),
        &part("web>"),
        &part(&"x".repeat(25)),
        &format!("{NAME}/cloneJobs/{job}"),
        &long,
    ] {
        let fault = text.parse::<MigratingVmName>().expect_err(text).to_string();
        assert!(fault.len() < 600, "{fault}");
    }
    for text in [
        NAME.to_owned(),
        format!("{NAME}/cloneJobs"),
        format!("{NAME}/cloneJobs/"),
        format!("{NAME}/cloneJobs/1"),
        format!("{NAME}/cloneJobs/{job}:cancel"),
        format!("{NAME}/cloneJobs/{job}/"),
        format!("{NAME}/cloneJobs/{}", job.replace('-', "")),
        format!("{NAME}/cutoverJobs/{job}"),
        format!("{NAME}//cloneJobs/{job}"),
        format!("x/{NAME}/cloneJobs/{job}"),
        part(&format!("-x/cloneJobs/{job}")),
    ] {
        assert!(text.parse::<CloneJobName>().is_err(), "{text}");
        assert!(text.replace("cloneJobs", "replicationCycles").parse::<ReplicationCycleName>().is_err(), "{text}");
    }
    let swapped = format!("{NAME}/replicationCycles/{job}");
    assert!(matches!(swapped.parse::<CloneJobName>(), Err(InvalidName::Form { .. })), "of another collection");
    assert!(swapped.parse::<ReplicationCycleName>().is_ok());
}

#[test]
fn a_refusal_says_what_a_name_is_like() {
    let fault = "web".parse::<CloneJobName>().expect_err("no name").to_string();
    assert_eq!(
        fault,
        "\"web\" is not the name of a clone job; give one such as \
         projects/sterna/locations/TARGET/sources/SOURCE/migratingVms/VM/cloneJobs/JOB"
    );
    let fault = NAME.replace("web", "_web").parse::<MigratingVmName>().expect_err("no name").to_string();
    assert!(fault.contains("replicated VM") && fault.contains("_web"), "{fault}");
}
