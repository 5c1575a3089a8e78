//! `/etc/hostname` and `/etc/hosts`: what a system calls itself, and the lines that call it so.

/// The longest name that the kernel takes.
const NAME_BYTES_MAX: usize = 64;

/// What a system was called, and is called from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// Its old name, as it was set; empty where none was.
    pub(crate) old: String,
    /// Its new name, in its own domain, or that which the old one was in.
    pub(crate) new: String,
    /// The new name without a domain.
    short: String,
    /// Its own domain.
    domain: Option<String>,
}

impl Names {
    /// From what is in `/etc/hostname`: the first line that is no comment.
    pub(crate) fn of(file: &str, name: &str) -> Self {
        let old =
            file.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or_default();
        let (short, own) = split(name);
        let inherited = split(old).1.filter(|domain| own.is_none() && is_domain(domain) && !is_everybodys(old));
        let whole = inherited.map(|domain| format!("{short}.{domain}"));
        let new = whole.filter(|name| name.len() <= NAME_BYTES_MAX).unwrap_or_else(|| name.to_owned());
        Self { old: old.to_owned(), new, short: short.to_owned(), domain: own.map(str::to_owned) }
    }

    /// A table of hosts in which the system has its new name; none where the old one is not in it.
    pub(crate) fn renamed(&self, hosts: &str) -> Option<String> {
        if split(&self.old).0.is_empty() || is_everybodys(&self.old) {
            return None;
        }
        let changed: String = hosts.split_inclusive('\n').map(|line| self.renamed_in(line)).collect();
        (changed != hosts).then_some(changed)
    }

    fn renamed_in(&self, line: &str) -> String {
        let (text, comment) = line.split_at(line.find('#').unwrap_or(line.len()));
        // The first word is the address.
        let start = text.len() - text.trim_start().len();
        let end = text[start..].find(char::is_whitespace).map_or(text.len(), |at| start + at);
        let (address, names) = text.split_at(end);
        let own = address.trim().starts_with("127.") || address.trim() == "::1";
        let names: String = names.split_inclusive([' ', '\t', '\n']).map(|word| self.renamed_word(word, own)).collect();
        format!("{address}{names}{comment}")
    }

    /// A name with the space after it; in another domain it is this system's only where the address is its own.
    fn renamed_word(&self, word: &str, own: bool) -> String {
        let bare = word.trim_end();
        let space = &word[bare.len()..];
        let ((old, old_domain), (host, domain)) = (split(&self.old), split(bare));
        if !host.eq_ignore_ascii_case(old) {
            return word.to_owned();
        }
        match domain {
            None => format!("{}{space}", self.short),
            Some(domain) if own || old_domain.is_some_and(|of| of.eq_ignore_ascii_case(domain)) => {
                format!("{}.{}{space}", self.short, self.domain.as_deref().unwrap_or(domain))
            }
            Some(_) => word.to_owned(),
        }
    }
}

/// A name and its domain.
fn split(name: &str) -> (&str, Option<&str>) {
    name.split_once('.').map_or((name, None), |(host, domain)| (host, Some(domain)))
}

/// Every machine is called so in its own table.
fn is_everybodys(name: &str) -> bool {
    split(name).0 == "localhost"
}

fn is_domain(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_its_new_name_in_the_table_of_hosts() {
        let hosts = "127.0.0.1\tlocalhost\n127.0.1.1\tweb.example web # web\n10.0.0.2 webmail my.web web2\n::1 Web\n\
                     10.0.0.3 web.elsewhere\n 10.0.0.4 web\nweb web";
        let expected = "127.0.0.1\tlocalhost\n127.0.1.1\ttrial.example trial # web\n10.0.0.2 webmail my.web web2\n\
                        ::1 trial\n10.0.0.3 web.elsewhere\n 10.0.0.4 trial\nweb trial";
        let renamed = |old: &str| Names::of(old, "trial").renamed(hosts);
        assert_eq!(renamed("web\n").as_deref(), Some(expected));
        assert_eq!(renamed("other"), None);
        assert_eq!(renamed("localhost.localdomain"), None, "that name is everybody's");
        assert_eq!(renamed(""), None);
        assert_eq!(renamed(".example"), None);
    }

    #[test]
    fn a_host_goes_to_the_domain_that_its_new_name_is_in() {
        let names = Names::of("web.example.org", "shop.test");
        assert_eq!(names.new, "shop.test");
        let hosts = "127.0.1.1 web.example.org web\n10.0.0.6 web.example.net\n127.0.0.1 web.local localhost\n";
        let expected = "127.0.1.1 shop.test shop\n10.0.0.6 web.example.net\n127.0.0.1 shop.test localhost\n";
        assert_eq!(names.renamed(hosts).as_deref(), Some(expected));
        assert_eq!(Names::of("web", "shop.test").renamed("127.0.1.1 web").as_deref(), Some("127.0.1.1 shop"));
    }

    #[test]
    fn a_host_stays_in_its_domain() {
        let names = Names::of("# set by hand\n\n web.example.org \nmail\n", "trial");
        assert_eq!((names.old.as_str(), names.new.as_str()), ("web.example.org", "trial.example.org"));
        let hosts = "10.0.0.5 web.example.org web\n10.0.0.6 web.example.net\n";
        let expected = "10.0.0.5 trial.example.org trial\n10.0.0.6 web.example.net\n";
        assert_eq!(names.renamed(hosts).as_deref(), Some(expected));
        for (old, new) in [("", "trial"), ("localhost.localdomain", "trial"), ("web.", "trial"), ("web.a b", "trial")] {
            assert_eq!(Names::of(old, "trial").new, new, "{old}");
        }
        assert_eq!(Names::of(&format!("web.{}", "a".repeat(60)), "trial").new, "trial", "the whole is too long");
    }
}
