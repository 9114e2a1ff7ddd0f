//! Subresources that are documents of their own: scale, binding, eviction.

use http::Response;
use serde_json::Value;

use crate::kinds::selector::LabelSelector;
use crate::kinds::status::Status;
use crate::kinds::{Object, Subresource, meta};
use crate::registry::{DeleteOptions, ListOptions, Preconditions, WriteOptions};

use super::reply::Body;
use super::request::Call;
use super::verbs;

/// A `Scale` as sent by a client.
pub(super) fn check_scale(object: &mut Object) -> Result<(), Status> {
    match (meta::api_version(object), meta::kind(object)) {
        ("" | "autoscaling/v1", "" | "Scale") => {}
        (version, kind) => {
            return Err(Status::bad_request(format!("expected autoscaling/v1 Scale, not {version} {kind}")));
        }
    }
    object.insert("kind".into(), "Scale".into());
    object.insert("apiVersion".into(), "autoscaling/v1".into());
    Ok(())
}

/// `POST` to a subresource.
pub(super) async fn create(call: &Call, object: Object, options: &WriteOptions) -> Result<Response<Body>, Status> {
    match call.target.sub {
        Some(Subresource::Binding) => bind(call, object, options).await,
        Some(Subresource::Eviction) => evict(call, &object, options).await,
        Some(Subresource::Status | Subresource::Scale) | None => Err(Status::method_not_allowed()),
        Some(Subresource::Other(name)) => {
            let message = format!("{}/{name} is not supported", call.kind().plural);
            Err(Status::new(501, "NotImplemented", message))
        }
    }
}

async fn bind(call: &Call, mut binding: Object, options: &WriteOptions) -> Result<Response<Body>, Status> {
    if !["", "Binding"].contains(&meta::kind(&binding)) {
        return Err(Status::bad_request(format!("expected Binding, not {}", meta::kind(&binding))));
    }
    binding.insert("kind".into(), "Binding".into());
    let (ns, name) = (&call.target.ns, &call.target.name);
    call.api.registry.update(call.kind(), ns, name, call.target.sub, binding, options).await?;
    call.style.value(201, &verbs::done())
}

/// Deletes the pod unless a PodDisruptionBudget forbids it.
async fn evict(call: &Call, eviction: &Object, options: &WriteOptions) -> Result<Response<Body>, Status> {
    let (ns, name) = (&call.target.ns, &call.target.name);
    let pod = call.api.registry.get(call.kind(), ns, name)?;
    let given = meta::name(eviction);
    if !given.is_empty() && given != name {
        let text = format!("name in URL does not match name in Eviction object: {given} != {name}");
        return Err(Status::bad_request(text));
    }
    let empty = Object::new();
    let wanted = meta::object_at(eviction, "/deleteOptions").unwrap_or(&empty);
    let text = |path: &str| Some(meta::str_at(wanted, path).to_owned()).filter(|s| !s.is_empty());
    let listed = wanted.get("dryRun").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let dry_run = options.dry_run || listed.into_iter().any(|v| v == "All");
    // Finished pods and pods on their way out count for no budget.
    let counts =
        !meta::is_deleting(&pod) && !["Succeeded", "Failed", "Pending"].contains(&meta::str_at(&pod, "/status/phase"));
    if counts {
        take_from_budget(call, &pod, &WriteOptions { dry_run, ..options.clone() }).await?;
    }
    let options = DeleteOptions {
        grace: meta::int_at(wanted, "/gracePeriodSeconds"),
        preconditions: Preconditions {
            uid: text("/preconditions/uid"),
            revision: text("/preconditions/resourceVersion"),
        },
        dry_run,
        user: call.user.name.clone(),
        ..DeleteOptions::default()
    };
    call.api.registry.delete(call.kind(), ns, name, &options).await?;
    call.style.value(201, &verbs::done())
}

/// Counts an eviction against the budget of the pod, or refuses it with 429.
async fn take_from_budget(call: &Call, pod: &Object, options: &WriteOptions) -> Result<(), Status> {
    let registry = &call.api.registry;
    let Some(kind) = registry.kinds().by_plural("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    let mut budgets = Vec::new();
    for raw in registry.list(&kind, &ListOptions::within(&call.target.ns))?.items {
        let budget = raw.object()?;
        let selects =
            meta::object_at(&budget, "/spec/selector").is_some_and(|s| LabelSelector::from_object(s).matches(pod));
        if selects {
            budgets.push(budget);
        }
    }
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [budget] => budget,
        _ => {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::internal(why));
        }
    };
    let (name, pod_name, now) = (meta::name(budget), meta::name(pod).to_owned(), jiff::Timestamp::now());
    let sub = Some(Subresource::Status);
    let taken = registry.modify(&kind, &call.target.ns, name, sub, options, |budget| {
        let left = meta::int_at(budget, "/status/disruptionsAllowed").unwrap_or(0);
        let seen = meta::int_at(budget, "/status/observedGeneration").unwrap_or(0) >= meta::generation(budget);
        if left <= 0 || !seen {
            let mut status = Status::too_many_requests(
                "Cannot evict pod as it would violate the pod's disruption budget.",
                if seen { 0 } else { 10 },
            );
            status.details["causes"] = serde_json::json!([{
                "reason": "DisruptionBudget",
                "message": format!("The disruption budget {} does not allow evicting pods currently", meta::name(budget)),
            }]);
            return Err(status);
        }
        meta::set(budget, "/status/disruptionsAllowed", left - 1);
        meta::object_at_mut(budget, "/status/disruptedPods").insert(pod_name.clone(), meta::format_time(now).into());
        Ok(())
    });
    taken.await.map(drop)
}
