//! Which objects a list or watch is about.

use crate::kinds::field_selector::FieldSelector;
use crate::kinds::selector::LabelSelector;
use crate::kinds::status::Status;
use crate::kinds::{Hooks, Kind};

use super::body::Raw;

/// Label and field selector of a request, for objects of one kind.
pub struct Filter {
    labels: LabelSelector,
    fields: FieldSelector,
    hooks: &'static dyn Hooks,
}

impl Filter {
    /// Parses the selectors; empty texts select everything.
    ///
    /// # Errors
    /// 400 for what cannot be parsed or for a field the kind cannot be selected by.
    pub fn new(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = LabelSelector::parse(labels).map_err(|e| Status::bad_request(e.to_string()))?;
        let fields = FieldSelector::parse(fields)?;
        fields.check(kind.hooks)?;
        Ok(Self { labels, fields, hooks: kind.hooks })
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name selected, if it is one.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }

    /// The one node selected, if it is one.
    pub(super) fn node(&self) -> Option<&str> {
        self.fields.exact("spec.nodeName").filter(|node| !node.is_empty())
    }

    /// Whether an object is selected. Parses no more of it than the selectors need.
    ///
    /// # Errors
    /// 500 for a stored object that is damaged.
    pub fn matches(&self, object: &Raw) -> Result<bool, Status> {
        if !self.labels.is_empty() && !self.labels.matches_labels(Some(&object.labels()?)) {
            return Ok(false);
        }
        Ok(self.fields.is_empty() || self.fields.matches(self.hooks, &object.object()?))
    }
}
