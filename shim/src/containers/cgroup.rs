//! A container's cgroup: who is in it, what it has used, and when its memory runs out.

use orlop_host::cgroup::Cgroup;
use orlop_host::live;
use orlop_proto::any;
use orlop_proto::containerd::runc::v1::ProcessDetails;
use orlop_proto::containerd::task::v2 as api;
use orlop_proto::containerd::v1::types::ProcessInfo;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use crate::log;
use crate::poll::{Interest, Token};
use crate::serve::Shim;
use crate::task::Input;

impl Shim {
    /// Hears from now on when memory runs out in the cgroup of the container's first process.
    pub(super) fn watch_memory(&mut self, id: &str, pid: i32) {
        let Some(container) = self.containers.get_mut(id) else { return };
        // A container that ended already has none.
        container.cgroup = match container.runtime.state_of(id) {
            // A container may have no cgroup of its own; whatever is done to its processes must not meet others.
            Some(state) => state
                .and_then(|state| state.load())
                .and_then(|state| Cgroup::open(&live::cgroup_paths(&state)))
                .ok(),
            None => Cgroup::of_process(pid).ok(),
        };
        let Some(cgroup) = &container.cgroup else { return };
        let watched = cgroup.oom_events().and_then(|watch| {
            self.poller.add(&watch, Token::OutOfMemory(container.number), Interest::Read)?;
            Ok(watch)
        });
        match watched {
            Ok(watch) => container.out_of_memory = Some(watch),
            Err(error) => log::debug(format_args!("lack of memory is not noticed: {error}")),
        }
    }

    /// Memory ran out in a container's cgroup, or the cgroup is gone.
    pub fn out_of_memory(&mut self, number: u64) {
        let found = self.containers.iter_mut().find(|(_, container)| container.number == number);
        let Some((id, container)) = found else { return };
        let Some(watch) = &mut container.out_of_memory else { return };
        match watch.take() {
            Ok(true) => self.inputs.push_back((id.clone(), Input::OutOfMemory)),
            Ok(false) => {}
            Err(_) => {
                self.poller.remove(&*watch);
                container.out_of_memory = None;
            }
        }
    }

    /// The processes of a container's cgroup, as the Pids call answers them.
    pub(super) fn pids(&self, id: &str) -> Result<Vec<u8>> {
        let container = self.containers.get(id).ok_or_else(no_cgroup)?;
        let pids = container.cgroup.as_ref().ok_or_else(no_cgroup)?.pids()?;
        let processes = pids.into_iter().map(|pid| ProcessInfo {
            pid: pid as u32,
            info: container
                .task
                .exec_of(pid)
                .map(|exec| any::pack(&ProcessDetails { exec_id: exec.to_owned() })),
        });
        Ok(api::PidsResponse { processes: processes.collect() }.encode_to_vec())
    }

    /// What a container's cgroup has used, as the Stats call answers it.
    pub(super) fn stats(&self, id: &str) -> Result<Vec<u8>> {
        let container = self.containers.get(id).ok_or_else(no_cgroup)?;
        let stats = container.cgroup.as_ref().ok_or_else(no_cgroup)?.stats()?;
        Ok(api::StatsResponse { stats: Some(crate::stats::pack(&stats)) }.encode_to_vec())
    }
}

fn no_cgroup() -> Error {
    Error::new(Kind::NotFound, "cgroup does not exist", "")
}
