//! The catalogue of errors: what each code is, pinned number by number, and docs/errors.md, which is made of it.
//!
//! After a change that is meant, `STERNA_WRITE_DOCS=1 cargo test -p sterna-shared --test errors` writes the page anew.

use std::fmt::Write as _;
use std::path::PathBuf;

use sterna_shared::job::{ConditionCode, ErrorEntry, FailureCode, RefusalCode, RemedyNames};
use sterna_shared::view::cim::{ErrorClass, ErrorCode, ErrorType};

const WRITE: &str = "STERNA_WRITE_DOCS";

/// `MessageID`, code, `ErrorType`, `ProbableCause`, `PerceivedSeverity`, `CIMStatusCode`. Rows are added; none is ever changed
/// in its first column, or taken out for another code to have its id.
const PINNED: &[(&str, &str, u16, u16, u16, u32)] = &[
    ("STERNA-F001", "cancelled", 1, 1, 2, 1),
    ("STERNA-F002", "target_refused", 9, 57, 3, 1),
    ("STERNA-F003", "link_lost", 2, 7, 3, 1),
    ("STERNA-F004", "peer_misbehaved", 2, 6, 3, 1),
    ("STERNA-F005", "disk_read", 5, 24, 4, 1),
    ("STERNA-F006", "disk_write", 9, 50, 3, 1),
    ("STERNA-F007", "digest_mismatch", 5, 10, 4, 1),
    ("STERNA-F008", "hypervisor", 4, 3, 3, 1),
    ("STERNA-F009", "memory_copy", 2, 69, 3, 1),
    ("STERNA-F010", "blackout_exceeded", 3, 52, 3, 1),
    ("STERNA-F011", "agent_restarted", 4, 110, 3, 1),
    ("STERNA-F012", "journal", 9, 112, 4, 1),
    ("STERNA-F013", "plan_stale", 1, 81, 2, 1),
    ("STERNA-F014", "internal", 4, 47, 4, 1),
    ("STERNA-F016", "pool_full", 9, 50, 3, 1),
    ("STERNA-F017", "suspended", 1, 1, 2, 1),
    ("STERNA-F018", "not_migratable", 9, 57, 2, 1),
    ("STERNA-F019", "os_adaptation", 4, 3, 3, 1),
    ("STERNA-F020", "guest_not_shut_down", 3, 52, 2, 1),
    ("STERNA-F021", "pool_nearly_full", 9, 50, 3, 1),
    ("STERNA-F024", "unhealthy", 4, 3, 4, 1),
    ("STERNA-J001", "killed", 1, 1, 3, 1),
    ("STERNA-J002", "unresolved", 2, 7, 4, 1),
    ("STERNA-J003", "host_silent", 2, 7, 3, 1),
    ("STERNA-J004", "in_service", 1, 128, 2, 1),
    ("STERNA-J005", "cause", 0, 0, 0, 1),
    ("STERNA-R001", "unknown_vm", 9, 73, 2, 6),
    ("STERNA-R002", "ambiguous_vm", 10, 79, 2, 4),
    ("STERNA-R003", "unknown_host", 9, 73, 2, 6),
    ("STERNA-R004", "host_offline", 2, 7, 3, 1),
    ("STERNA-R005", "same_host", 10, 129, 2, 4),
    ("STERNA-R006", "no_target", 10, 122, 2, 4),
    ("STERNA-R007", "vm_in_job", 9, 57, 2, 1),
    ("STERNA-R008", "vm_state", 10, 129, 2, 1),
    ("STERNA-R009", "vm_unresolved", 9, 72, 4, 1),
    ("STERNA-R010", "memory", 8, 33, 3, 1),
    ("STERNA-R011", "pool_space", 8, 50, 3, 1),
    ("STERNA-R012", "unknown_pool", 9, 73, 2, 6),
    ("STERNA-R013", "pool_kind", 10, 8, 2, 7),
    ("STERNA-R014", "unknown_disk", 9, 73, 2, 6),
    ("STERNA-R015", "pool_not_shared", 10, 8, 2, 7),
    ("STERNA-R016", "nothing_to_move", 10, 129, 2, 4),
    ("STERNA-R017", "unknown_bridge", 9, 73, 2, 6),
    ("STERNA-R018", "machine_type", 10, 58, 2, 7),
    ("STERNA-R019", "cpu_model", 10, 57, 2, 7),
    ("STERNA-R020", "firmware", 9, 73, 2, 6),
    ("STERNA-R021", "boot_file", 9, 73, 2, 6),
    ("STERNA-R022", "name_taken", 10, 79, 2, 11),
    ("STERNA-R023", "certificate_expired", 7, 125, 3, 1),
    ("STERNA-R024", "certificate_authority", 7, 64, 3, 1),
    ("STERNA-R025", "host_busy", 8, 44, 2, 1),
    ("STERNA-R026", "invalid_value", 10, 130, 2, 4),
    ("STERNA-R027", "accelerator", 10, 108, 2, 7),
    ("STERNA-R028", "migration_disabled", 9, 128, 2, 1),
    ("STERNA-R031", "port_unreachable", 2, 5, 3, 1),
    ("STERNA-R032", "peer_certificate", 7, 64, 3, 1),
    ("STERNA-R033", "clock_skew", 6, 53, 3, 1),
    ("STERNA-R034", "not_converging", 3, 9, 2, 1),
    ("STERNA-R035", "certificate_expiring", 7, 125, 2, 1),
    ("STERNA-R036", "older_hypervisor", 10, 58, 2, 1),
    ("STERNA-R037", "few_processors", 8, 44, 2, 1),
    ("STERNA-R038", "not_measured", 4, 57, 2, 1),
    ("STERNA-R039", "disk_unreadable", 5, 24, 4, 1),
    ("STERNA-R040", "no_adapter", 9, 73, 2, 6),
    ("STERNA-R041", "planned_unknown", 9, 73, 2, 6),
    ("STERNA-R042", "planned_mismatch", 10, 122, 2, 4),
    ("STERNA-R043", "planned_expired", 9, 53, 2, 1),
    ("STERNA-R044", "planned_changed", 1, 81, 2, 1),
    ("STERNA-R045", "replica_unknown", 9, 73, 2, 6),
    ("STERNA-R046", "replica_mismatch", 10, 122, 2, 4),
    ("STERNA-R047", "snapshot_unknown", 9, 73, 2, 6),
    ("STERNA-R048", "snapshot_damaged", 5, 10, 4, 1),
    ("STERNA-R052", "not_cut_over", 10, 129, 2, 1),
    ("STERNA-R053", "replication_finalized", 10, 129, 2, 1),
    ("STERNA-R054", "not_extendable", 10, 129, 2, 1),
    ("STERNA-R055", "replica_limit", 8, 44, 2, 1),
    ("STERNA-R056", "replication_expired", 9, 53, 2, 1),
    ("STERNA-R060", "probe_impossible", 10, 8, 2, 1),
    ("STERNA-R061", "secure_boot_impossible", 10, 8, 2, 7),
    ("STERNA-R062", "boot_option_impossible", 10, 8, 2, 7),
];

fn all() -> Vec<(&'static ErrorEntry, ErrorClass)> {
    let failures = FailureCode::ALL.iter().map(|code| (code.entry(), ErrorClass::from(*code)));
    let conditions = ConditionCode::ALL.iter().map(|code| (code.entry(), ErrorClass::from(*code)));
    let refusals = RefusalCode::ALL.iter().map(|code| (code.entry(), ErrorClass::from(*code)));
    failures.chain(conditions).chain(refusals).collect()
}

#[test]
fn every_code_is_what_it_always_was() {
    let is = all().into_iter().map(|(entry, class)| {
        let (kind, cause) = (class.error_type.number(), class.probable_cause.number());
        (entry.message_id, entry.name, kind, cause, class.severity.number(), class.status_code.number())
    });
    assert_eq!(is.collect::<Vec<_>>(), PINNED);
}

#[test]
fn a_failure_has_one_number_in_both_places() {
    for code in FailureCode::ALL {
        let number = ErrorCode::from(*code).number();
        assert_eq!(code.entry().message_id, format!("STERNA-F{number:03}"));
    }
}

#[test]
fn a_kind_is_told_in_words_exactly_where_it_has_no_number() {
    for (entry, class) in all() {
        assert_eq!(class.other_error_type.is_some(), class.error_type == ErrorType::Other, "{}", entry.message_id);
    }
}

#[test]
fn the_page_is_what_the_catalogue_says() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    let page = page();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &page).expect("docs/errors.md can be written");
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(kept.lines()).position(|(is, was)| is != was);
    let differs = differs.unwrap_or_else(|| page.lines().count().min(kept.lines().count())) + 1;
    assert!(
        page == kept,
        "docs/errors.md is not what the catalogue says, from line {differs} on; to write it anew: {WRITE}=1 cargo test -p \
         sterna-shared --test errors"
    );
}

const INTRODUCTION: &str = "\
# Errors

Each error of Sterna has an id that never changes its meaning; it is the `MessageID` of the error records of [a job](job-model.md#msvm_error).
The code in backquotes is what JSON has (`failure.code`, `refusals[].code`). What a message says beside is of the case at hand.
This page is made of the code (`shared/src/job/failure`) by a test, `shared/tests/errors.rs`, which says how to make it anew.
";

fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    let failures: Vec<_> = FailureCode::ALL.iter().map(|code| (code.entry(), (*code).into())).collect();
    let conditions: Vec<_> = ConditionCode::ALL.iter().map(|code| (code.entry(), (*code).into())).collect();
    let refusals: Vec<_> = RefusalCode::ALL.iter().map(|code| (code.entry(), (*code).into())).collect();
    for (title, about, rows) in [
        (
            "Failures",
            "A job failed, or was cancelled. The VM is as it was unless the report says otherwise. The number is that of the job's \
             `ErrorCode`; 15 is there the code of STERNA-J002, so that there is no STERNA-F015.",
            failures,
        ),
        (
            "What else a job tells",
            "Nothing failed, and a program that asks for the job's error is to learn of it. These have no code in JSON.",
            conditions,
        ),
        (
            "Refusals",
            "A request cannot become a plan. Nothing was begun; every reason is told at once, each with its own remedy.",
            refusals,
        ),
    ] {
        let _ = writeln!(page, "\n## {title}\n\n{about}");
        for (entry, class) in rows {
            section(&mut page, entry, class);
        }
    }
    page
}

fn section(page: &mut String, entry: &ErrorEntry, class: ErrorClass) {
    let _ = writeln!(page, "\n### {} `{}`\n\n{}\n", entry.message_id, entry.name, entry.meaning);
    let _ = writeln!(page, "Probably: {}\n", entry.causes.join(" "));
    for remedy in entry.remedies(RemedyNames::default()) {
        let _ = writeln!(page, "* {remedy}");
    }
    let other = class.other_error_type.map(|kind| format!(" ({kind})")).unwrap_or_default();
    let _ = writeln!(
        page,
        "\nCIM: ErrorType {} {:?}{other}, ProbableCause {} {:?}, PerceivedSeverity {} {:?}, CIMStatusCode {} {}",
        class.error_type.number(),
        class.error_type,
        class.probable_cause.number(),
        class.probable_cause,
        class.severity.number(),
        class.severity,
        class.status_code.number(),
        class.status_code.name(),
    );
}
