//! Checks of a move's settings: whether the hosts can keep to them.

use sterna_shared::job::{Refusal, RefusalCode};

use super::check::refusal;
use super::{Case, placement};

/// Addresses that the move is to be held to are the target's, and images that are to stay are files.
pub(super) fn settings_can_be_kept(case: &Case, out: &mut Vec<Refusal>) {
    let settings = &case.request.settings;
    if let Some((_, target)) = case.hosts() {
        let inventory = &target.inventory;
        let advertised = |ip| inventory.addresses.iter().any(|address| address.ip() == ip);
        for ip in settings.addresses.iter().filter(|ip| !advertised(**ip)) {
            out.push(refusal(
                RefusalCode::InvalidValue,
                format!("{} does not advertise {ip}", inventory.host),
                format!("give addresses that `sterna host show {}` lists, or none", inventory.host),
            ));
        }
    }
    let (true, Some(source)) = (settings.keep_source_images, case.source()) else { return };
    for disk in placement::placed(case).into_iter().filter(|disk| disk.copied) {
        let (name, pool) = (&disk.source.name, &disk.source.pool);
        if placement::pool(source, pool).is_some_and(|pool| pool.extent.is_some()) {
            out.push(refusal(
                RefusalCode::PoolKind,
                format!(
                    "the image of disk {name} is a volume of pool {pool}, and only files can be kept under another name"
                ),
                "leave out RetainVhdCopiesOnSource and AvoidRemovingVHDs",
            ));
        }
    }
}
