//! Which of an image's variants runs on this machine.

use serde::Deserialize;

/// As in an OCI index, a manifest descriptor or an image configuration; empty fields are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub(super) os: String,
    pub(super) architecture: String,
    pub(super) variant: String,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// What this machine runs, best first: (architecture, variant).
pub(super) struct Machine(Vec<(&'static str, &'static str)>);

impl Machine {
    /// Of this program on this kernel.
    pub(super) fn this() -> Machine {
        let kernel = nix::sys::utsname::uname().map(|u| u.machine().to_string_lossy().into_owned()).unwrap_or_default();
        Machine::of(std::env::consts::ARCH, &kernel)
    }

    /// 64-bit machines also run their 32-bit sibling's programs, as containerd allows.
    fn of(architecture: &str, kernel: &str) -> Machine {
        const ARM: [(&str, &str); 4] = [("arm", "v7"), ("arm", ""), ("arm", "v6"), ("arm", "v5")];
        let all: &[&[_]] = match architecture {
            "x86_64" => &[&[("amd64", ""), ("amd64", "v1"), ("386", "")]],
            "aarch64" => &[&[("arm64", ""), ("arm64", "v8")], &ARM],
            // An unnamed variant means v7, but images for the first Pi came without one, too: it goes last.
            "arm" if kernel.starts_with("armv6") => &[&[("arm", "v6"), ("arm", "v5"), ("arm", "")]],
            "arm" => &[&ARM],
            "x86" => &[&[("386", "")]],
            _ => &[],
        };
        Machine(all.concat())
    }

    /// How well a platform fits: 0 is best, none is not at all. An image that does not say fits.
    pub(super) fn rank(&self, platform: &Platform) -> Option<usize> {
        if !matches!(platform.os.as_str(), "linux" | "") {
            return None;
        }
        if platform.architecture.is_empty() {
            return Some(self.0.len());
        }
        self.0.iter().position(|(a, v)| platform.architecture == *a && platform.variant == *v)
    }

    /// The platform that fits best.
    pub(super) fn best(&self) -> Platform {
        let (architecture, variant) = self.0.first().copied().unwrap_or((std::env::consts::ARCH, ""));
        Platform { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: variant.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chooses_as_containerd_does() {
        let platform = |text: &str| {
            let mut parts = text.split('/').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Platform { os: next(), architecture: next(), variant: next() }
        };
        let all = [
            "linux/amd64",
            "linux/386",
            "linux/arm64/v8",
            "linux/arm/v7",
            "linux/arm/v6",
            "linux/arm/v5",
            "linux/s390x",
        ];
        for (architecture, kernel, offered, expected) in [
            ("x86_64", "x86_64", &all[..], Some("linux/amd64")),
            ("x86_64", "x86_64", &["linux/386", "linux/arm64"], Some("linux/386")),
            ("x86_64", "x86_64", &["windows/amd64", "linux/amd64/v3"], None),
            ("aarch64", "aarch64", &all, Some("linux/arm64/v8")),
            ("aarch64", "aarch64", &["linux/arm/v6", "linux/arm/v7"], Some("linux/arm/v7")),
            ("arm", "armv7l", &all, Some("linux/arm/v7")),
            ("arm", "armv7l", &["linux/arm/v6", "linux/arm64"], Some("linux/arm/v6")),
            ("arm", "armv6l", &all, Some("linux/arm/v6")),
            ("arm", "armv6l", &["linux/arm/v7"], None),
            ("arm", "armv6l", &["linux/arm"], Some("linux/arm")),
            ("arm", "aarch64", &all, Some("linux/arm/v7")),
            ("x86_64", "x86_64", &["unknown/unknown"], None),
            ("x86_64", "x86_64", &["/"], Some("/")),
        ] {
            let machine = Machine::of(architecture, kernel);
            let best =
                offered.iter().filter_map(|o| Some((machine.rank(&platform(o))?, *o))).min().map(|(_, offer)| offer);
            assert_eq!(best, expected, "{architecture} on {kernel}");
        }
    }
}
