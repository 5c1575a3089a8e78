//! Lists of jobs of one kind, by pages and by what is looked for.

use clap::Args;
use sterna_shared::job::{JobKind, JobState, JobStatus};
use sterna_shared::view::google::{PAGE_DEFAULT, Page, PageToken};

use super::error::{CliError, Exit};
use super::output::{Format, Output};
use crate::client::{Client, Job};
use crate::view::JobView;

/// Which jobs are listed.
#[derive(Debug, Args)]
pub(super) struct PageArgs {
    /// Of this VM only, by its name or id
    #[arg(long, value_name = "VM")]
    vm: Option<String>,
    /// In this state only, such as running or completed; may be given several times
    #[arg(long = "state", value_name = "STATE", value_parser = parse_state)]
    states: Vec<JobState>,
    /// So many at most [default: all; with --output google 25]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    page_size: Option<u16>,
    /// Those after the page that told this token
    #[arg(long, value_name = "TOKEN")]
    page_token: Option<PageToken>,
}

impl PageArgs {
    pub(super) fn page(&self, format: Format) -> Page {
        let all = if format == Format::Google { PAGE_DEFAULT } else { usize::MAX };
        let size = self.page_size.map_or(all, usize::from);
        Page { vm: self.vm.clone(), states: self.states.clone(), size, after: self.page_token }
    }
}

fn parse_state(text: &str) -> Result<JobState, String> {
    let states = JobState::ALL;
    states.into_iter().find(|state| state.to_string() == text).ok_or_else(|| {
        let names: Vec<String> = states.iter().map(ToString::to_string).collect();
        format!("give one of {}", names.join(", "))
    })
}

/// Lists the jobs of one kind, which people see as `draw` has them.
pub(super) async fn list(
    kind: JobKind,
    args: &PageArgs,
    draw: fn(&[JobStatus]) -> String,
    client: &Client,
    output: Output,
) -> Result<Exit, CliError> {
    let listed = client.jobs_and_progress().await?;
    let of_kind = listed.iter().map(|job| &*job.status).filter(|status| status.plan.kind == kind);
    let (jobs, next) = args.page(output.format).of(of_kind);
    let jobs: Vec<JobStatus> = jobs.into_iter().cloned().collect();
    // In the order of the page, which is not that of the list.
    let view = |status: &JobStatus| listed.iter().find(|job| job.status.job == status.job).map(Job::view);
    let views: Vec<JobView> = jobs.iter().filter_map(view).collect();
    output.result(&views, || draw(&jobs))?;
    if let Some(next) = next {
        output.remark(&format!("there are more: --page-token {next}"));
    }
    Ok(Exit::Ok)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_of_those_that_there_are() {
        assert_eq!(parse_state("query_pending"), Ok(JobState::QueryPending));
        assert!(parse_state("done").expect_err("no state").contains("completed, "));
    }
}
