//! Moving replicas between the sets of a Deployment: rolling update, recreation, proportional scaling.

use super::plan::Rollout;
use super::revision::{DESIRED, MAX};

impl Rollout<'_> {
    /// One step of a rolling update; returns whether it changed a set.
    pub(super) fn roll(&mut self) -> bool {
        let had_new = self.new.is_some();
        self.renew(true);
        let Some(new) = self.new else { return false };
        let wanted = self.deployment.spec.replicas;
        let replicas = if self.sets[new].spec.replicas > wanted { wanted } else { self.new_replicas() };
        if had_new && self.scale_to(new, replicas) {
            return true;
        }
        self.scale_down_old(new)
    }

    /// Takes pods from the old sets as far as enough pods stay available; unhealthy ones first.
    fn scale_down_old(&mut self, new: usize) -> bool {
        let old: Vec<usize> = self.old().filter(|&i| self.sets[i].spec.replicas > 0).collect();
        if old.is_empty() {
            return false;
        }
        let least = self.deployment.spec.replicas - self.deployment.max_unavailable();
        let new_set = &self.sets[new];
        let new_unavailable = new_set.spec.replicas - new_set.status.available_replicas;
        let most_gone = self.total() - least - new_unavailable;
        if most_gone <= 0 {
            return false;
        }
        let unhealthy = self.scale_down_unhealthy(&old, most_gone);
        let healthy = self.scale_down_available(&old, least);
        unhealthy || healthy
    }

    fn scale_down_unhealthy(&mut self, old: &[usize], most: i64) -> bool {
        let mut gone = 0;
        for &i in old {
            let (replicas, available) = (self.sets[i].spec.replicas, self.sets[i].status.available_replicas);
            let count = (most - gone).min(replicas - available);
            if count > 0 {
                self.scale_to(i, replicas - count);
                gone += count;
            }
        }
        gone > 0
    }

    fn scale_down_available(&mut self, old: &[usize], least: i64) -> bool {
        let available: i64 = self.sets.iter().map(|set| set.status.available_replicas).sum();
        let most = available - least;
        let mut gone = 0;
        for &i in old {
            let replicas = self.sets[i].spec.replicas;
            let count = (most - gone).min(replicas);
            if count > 0 {
                self.scale_to(i, replicas - count);
                gone += count;
            }
        }
        gone > 0
    }

    /// One step of a recreation: everything old goes before anything new comes. Returns whether old pods remain.
    pub(super) fn recreate(&mut self, running: &[String]) -> bool {
        self.renew(false);
        let old: Vec<usize> = self.old().collect();
        let mut scaled = false;
        for &i in &old {
            scaled |= self.scale_to(i, 0);
        }
        let new_uid = self.new.map(|i| self.sets[i].metadata.uid.clone());
        if scaled
            || old.iter().any(|&i| self.sets[i].status.replicas > 0)
            || running.iter().any(|uid| Some(uid) != new_uid.as_ref())
        {
            return true;
        }
        if self.new.is_none() {
            self.renew(true);
        } else if let Some(new) = self.new {
            self.scale_to(new, self.deployment.spec.replicas);
        }
        false
    }

    /// Brings the sets to a changed number of replicas: the only active one, or else each in proportion to its size, so
    /// that a rollout that is under way keeps its risk.
    pub(super) fn scale(&mut self) {
        let wanted = self.deployment.spec.replicas;
        if let Some(only) = self.only_active() {
            self.scale_to(only, wanted);
            self.annotate_scale(only);
        } else if self.new.is_some_and(|new| self.is_saturated(new)) {
            let old: Vec<usize> = self.old().filter(|&i| self.sets[i].spec.replicas > 0).collect();
            for i in old {
                self.scale_to(i, 0);
            }
        } else if self.deployment.rolling() {
            self.scale_in_proportion();
        }
    }

    /// The only active set; with none active the one that should be: the new one, or the latest.
    fn only_active(&self) -> Option<usize> {
        let mut active = self.active();
        match (active.next(), active.next()) {
            (Some(only), None) => Some(only),
            (None, _) => self.new.or_else(|| self.sets.len().checked_sub(1)),
            _ => None,
        }
    }

    /// Whether the new set has all the pods wanted and they are available.
    fn is_saturated(&self, new: usize) -> bool {
        let wanted = self.deployment.spec.replicas;
        let set = &self.sets[new];
        set.spec.replicas == wanted
            && self.annotated(new, DESIRED) == Some(wanted)
            && set.status.available_replicas == wanted
    }

    fn scale_in_proportion(&mut self) {
        let wanted = self.deployment.spec.replicas;
        let mut active: Vec<usize> = self.active().collect();
        let allowed = if wanted > 0 { wanted + self.deployment.max_surge() } else { 0 };
        let to_add = allowed - self.total();
        // The biggest sets first; of equal ones the newest when growing, the oldest when shrinking.
        active.sort_by_key(|&i| (-self.sets[i].spec.replicas, if to_add > 0 { usize::MAX - i } else { i }));
        let mut added = 0;
        let mut sizes: Vec<i64> = Vec::with_capacity(active.len());
        for &i in &active {
            let share = self.share(i, to_add, added);
            added += share;
            sizes.push(self.sets[i].spec.replicas + share);
        }
        if let Some(biggest) = sizes.first_mut() {
            *biggest = (*biggest + to_add - added).max(0);
        }
        for (&i, &size) in active.iter().zip(&sizes) {
            self.scale_to(i, size);
            self.annotate_scale(i);
        }
    }

    /// What a set gets of the replicas to add (negative: to remove), `added` of which are given away already.
    fn share(&self, place: usize, to_add: i64, added: i64) -> i64 {
        let size = self.sets[place].spec.replicas;
        if size == 0 || to_add == 0 || to_add == added {
            return 0;
        }
        let fraction = self.fraction(place, size);
        let left = to_add - added;
        if to_add > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    fn fraction(&self, place: usize, size: i64) -> i64 {
        if self.deployment.spec.replicas == 0 {
            return -size;
        }
        let now = self.deployment.spec.replicas + self.deployment.max_surge();
        let before = self.annotated(place, MAX).unwrap_or(self.deployment.status.replicas);
        if before <= 0 {
            return 0;
        }
        // Rounded to the nearest, halves up.
        (2 * size * now + before).div_euclid(2 * before) - size
    }
}
