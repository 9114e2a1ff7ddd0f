//! Profile files in the JSON format of the container world (`localhostProfile`).

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;

use super::{
    super::{Error, Result, container::capability},
    Action, Arch, Branch, Condition, Table, Test,
};

/// Larger files are refused.
const MAX_FILE: u64 = 4 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile for a process with these capabilities.
pub(super) fn load(path: &Path, capabilities: u64) -> Result<Vec<Table>> {
    let fail = |source| Error::File { op: "read seccomp profile", path: path.into(), source };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    let refuse = |reason: String| Error::Invalid {
        field: "seccompProfile".into(),
        reason: format!("{}: {reason}", path.display()),
    };
    if size > MAX_FILE {
        return Err(refuse(format!("larger than {MAX_FILE} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    let file: File = serde_json::from_str(&text).map_err(|e| refuse(e.to_string()))?;
    if file.listener_path.is_some() {
        return Err(refuse("listenerPath is not supported".into()));
    }
    let arches: Vec<_> = Arch::native().iter().filter(|arch| file.wants(**arch)).collect();
    if arches.is_empty() {
        return Err(refuse("is for other architectures".into()));
    }
    arches.into_iter().map(|arch| file.table(*arch, capabilities).map_err(refuse)).collect()
}

impl File {
    /// Without a word about architectures it is the native one, as for other runtimes.
    fn wants(&self, arch: Arch) -> bool {
        let name = scmp(arch);
        match (&self.architectures, &self.arch_map) {
            (Some(list), _) if !list.is_empty() => list.iter().any(|a| a == name),
            (_, Some(map)) if !map.is_empty() => {
                let native = map.iter().find(|m| m.architecture == scmp(Arch::native()[0]));
                native
                    .is_some_and(|m| m.architecture == name || m.sub_architectures.iter().flatten().any(|a| a == name))
            }
            _ => arch == Arch::native()[0],
        }
    }

    fn table(&self, arch: Arch, capabilities: u64) -> Result<Table, String> {
        let otherwise = action(&self.default_action, self.default_errno_ret)?;
        let mut calls: BTreeMap<u32, Vec<Branch>> = BTreeMap::new();
        let numbers = arch.calls();
        for rule in &self.syscalls {
            // Checked even where the rule does not apply: a wrong profile is wrong on every host.
            let branch = rule.branch()?;
            if !rule.applies(arch, capabilities) {
                continue;
            }
            for name in rule.names.iter().chain(&rule.name) {
                // Names this architecture does not have are no error: profiles serve many.
                if let Some((number, _)) = numbers.iter().find(|(_, n)| n == name || alias(n) == Some(name)) {
                    calls.entry(*number).or_default().push(branch.clone());
                }
            }
        }
        // A rule without conditions decides only what no conditional rule does.
        calls.values_mut().for_each(|branches| branches.sort_by_key(|b| b.conditions.is_empty()));
        // Programs try new calls and fall back on ENOSYS only: say that of calls no profile can know.
        let refuses = ![Action::ALLOW, Action::LOG].contains(&otherwise);
        if refuses {
            for (number, _) in &numbers {
                calls.entry(*number).or_insert_with(|| vec![Branch::always(otherwise)]);
            }
        }
        Ok(Table { arch, calls, otherwise, unknown: if refuses { Action::NO_SUCH_CALL } else { otherwise } })
    }
}

impl Rule {
    fn branch(&self) -> Result<Branch, String> {
        let conditions = self.args.iter().flatten().map(Argument::condition).collect::<Result<_, _>>()?;
        Ok(Branch { conditions, action: action(&self.action, self.errno_ret)? })
    }

    fn applies(&self, arch: Arch, capabilities: u64) -> bool {
        let has = |name: &String| capability(name).is_some_and(|bit| capabilities & bit != 0);
        let arch_named = |name: &String| names_arch(name, arch);
        let included = self.includes.as_ref().is_none_or(|f| {
            f.caps.iter().flatten().all(has)
                && f.arches.as_ref().is_none_or(|a| a.is_empty() || a.iter().any(arch_named))
                && f.min_kernel.as_ref().is_none_or(|k| kernel_is_at_least(k))
        });
        let excluded = self.excludes.as_ref().is_some_and(|f| {
            f.caps.iter().flatten().any(has)
                || f.arches.iter().flatten().any(arch_named)
                || f.min_kernel.as_ref().is_some_and(|k| kernel_is_at_least(k))
        });
        included && !excluded
    }
}

impl Argument {
    fn condition(&self) -> Result<Condition, String> {
        let (test, value) = match &*self.op {
            "SCMP_CMP_NE" => (Test::NotEqual, self.value),
            "SCMP_CMP_LT" => (Test::Less, self.value),
            "SCMP_CMP_LE" => (Test::LessOrEqual, self.value),
            "SCMP_CMP_EQ" => (Test::Equal, self.value),
            "SCMP_CMP_GE" => (Test::GreaterOrEqual, self.value),
            "SCMP_CMP_GT" => (Test::Greater, self.value),
            "SCMP_CMP_MASKED_EQ" => (Test::Masked(self.value), self.value_two),
            other => return Err(format!("unknown comparison {other:?}")),
        };
        if self.index > 5 {
            return Err(format!("argument index {} is above 5", self.index));
        }
        Ok(Condition { argument: self.index, test, value })
    }
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_ERRNO" => Action::fail(errno.unwrap_or(libc::EPERM as u32)),
        "SCMP_ACT_LOG" => Action::LOG,
        "SCMP_ACT_TRAP" => Action::TRAP,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => Action::KILL_PROCESS,
        other => return Err(format!("action {other:?} is not supported")),
    })
}

fn scmp(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "SCMP_ARCH_X86_64",
        Arch::X86 => "SCMP_ARCH_X86",
        Arch::Aarch64 => "SCMP_ARCH_AARCH64",
        Arch::Arm => "SCMP_ARCH_ARM",
    }
}

/// Rules name architectures as Go does: by the native one, for its siblings too.
fn names_arch(name: &str, arch: Arch) -> bool {
    match arch {
        Arch::X86_64 => name == "amd64",
        Arch::X86 => matches!(name, "x86" | "386" | "amd64"),
        Arch::Aarch64 => name == "arm64",
        Arch::Arm => matches!(name, "arm" | "arm64"),
    }
}

/// The name profiles use, where the tables have another.
fn alias(name: &str) -> Option<&'static str> {
    match name {
        "fstatat" => Some("newfstatat"),
        "arm_sync_file_range" => Some("sync_file_range2"),
        _ => None,
    }
}

fn kernel_is_at_least(wanted: &str) -> bool {
    let version =
        |text: &str| -> Vec<u32> { text.split(['.', '-']).take(2).map_while(|part| part.parse().ok()).collect() };
    let running = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version(&running) >= version(wanted)
}
