//! `orlopctl namespaces`.

use orlop_proto::containerd::services::namespaces::v1::*;
use orlop_proto::error::Result;
use serde_json::json;
use tonic::Code;

use super::Context;
use crate::cli::namespaces::Namespaces;
use crate::labels;
use crate::output::{self, Gap, Table};

pub async fn execute(context: &Context<'_>, verb: Namespaces) -> Result<()> {
    let mut service = context.client.namespaces();
    match verb {
        Namespaces::Create { name, labels } => {
            let namespace = Some(Namespace { name, labels: labels::new(&labels) });
            service.create(CreateNamespaceRequest { namespace }).await?;
            Ok(())
        }
        Namespaces::List { quiet } => list(context, quiet).await,
        Namespaces::Remove { cgroup, names } => {
            for name in names {
                match service.delete(DeleteNamespaceRequest { name: name.clone() }).await {
                    Ok(_) => {}
                    Err(status) if status.code() == Code::NotFound => {}
                    Err(status) => return Err(status.into()),
                }
                if cgroup {
                    remove_cgroup(context, &name);
                }
                output::print(&format!("{name}\n"))?;
            }
            Ok(())
        }
        Namespaces::Label { name, labels } => {
            let changes = labels::changes(&labels);
            let update_mask = Some(labels::mask(&changes));
            let namespace = Some(Namespace { name, labels: changes });
            service.update(UpdateNamespaceRequest { namespace, update_mask }).await?;
            Ok(())
        }
    }
}

async fn list(context: &Context<'_>, quiet: bool) -> Result<()> {
    let request = ListNamespacesRequest::default();
    let namespaces = context.client.namespaces().list(request).await?.into_inner().namespaces;
    if quiet {
        let names: String = namespaces.iter().map(|namespace| format!("{}\n", namespace.name)).collect();
        return output::print(&names);
    }
    if context.json() {
        let rows = namespaces.iter().map(|one| json!({ "name": one.name, "labels": one.labels }));
        return output::json(&rows.collect());
    }
    let mut table = Table::new(Gap::Spaces(1), &["NAME", "LABELS"]);
    for namespace in namespaces {
        table.closed([namespace.name.clone(), output::labels(&namespace.labels)]);
    }
    table.print()
}

/// Removes the empty cgroup of a namespace from every hierarchy.
fn remove_cgroup(context: &Context<'_>, name: &str) {
    let root = std::path::Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in std::iter::once(root.to_owned()).chain(hierarchies) {
        let group = hierarchy.join(name);
        // The name was a namespace's, so it has no path in it; controllers without the group are the rule.
        if hierarchy.join("cgroup.procs").exists() && std::fs::remove_dir(&group).is_ok() {
            context.explain(|| format!("removed cgroup {}", group.display()));
        }
    }
}
