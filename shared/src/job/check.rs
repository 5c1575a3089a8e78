//! Checks: everything that speaks for and against a move before it is begun, with what was measured. Nothing is changed by one.

use serde::{Deserialize, Serialize};

use super::{Forecast, Plan, Refusal};
use crate::probe::ProbeReport;

/// How much a finding weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The move cannot be begun, or would fail.
    Error,
    /// It can, and somebody should know.
    Warning,
    /// Something could not be looked at.
    Unknown,
}

/// Something that a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// What, and what to do about it.
    #[serde(flatten)]
    pub reason: Refusal,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CheckReport {
    /// Whether the move can be begun: no finding is an error.
    pub migratable: bool,
    /// All that was found, the worst first.
    pub findings: Vec<Finding>,
    /// The plan that it would come to, token blanked; none where VM, source or target are not known, and where a job has it.
    pub plan: Option<Box<Plan>>,
    /// What was measured; none where the hosts could not be asked.
    pub probe: Option<ProbeReport>,
    /// What is to be expected of the move; none where too little is known.
    pub forecast: Option<Forecast>,
}

impl CheckReport {
    /// With the findings in order.
    #[must_use]
    pub fn new(
        mut findings: Vec<Finding>,
        plan: Option<Box<Plan>>,
        probe: Option<ProbeReport>,
        forecast: Option<Forecast>,
    ) -> Self {
        findings.sort_by_key(|finding| finding.severity);
        let migratable = findings.iter().all(|finding| finding.severity != Severity::Error);
        Self { migratable, findings, plan, probe, forecast }
    }
}
