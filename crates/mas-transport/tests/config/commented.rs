//! The commented files, in each of their forms.

use super::*;

/// A commented file of some form: what it is called, how a line of a setting begins and divides, and
/// how it is read.
struct Form {
    name: &'static str,
    print: fn(&Config, Option<&str>) -> mas_transport::Result<String>,
    /// What is taken away to uncomment a line, and what stands between name and value.
    marks: (&'static str, &'static str),
    read: fn(&str) -> (Config, Option<Scratch>),
}

fn from_file(name: &str, text: &str) -> (Config, Option<Scratch>) {
    let file = Scratch::new(name, text);
    (Config::new().file(file.path()), Some(file))
}

/// As a shell, a service manager and a container all take lines without spaces and quotes.
fn from_lines(text: &str) -> (Config, Option<Scratch>) {
    let lines = text
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'));
    let variables = lines.map(|line| {
        assert!(!line.contains([' ', '"', '\'', '$', '&']), "{line}");
        line.split_once('=').unwrap()
    });
    (Config::from_vars(variables), None)
}

const FORMS: [Form; 3] = [
    Form {
        name: "toml",
        print: Config::example_toml,
        marks: ("# ", " = "),
        read: |text| from_file("example.toml", text),
    },
    Form {
        name: "yaml",
        print: Config::example_yaml,
        marks: ("  # ", ": "),
        read: |text| from_file("example.yaml", text),
    },
    Form {
        name: "env",
        print: Config::example_env,
        marks: ("# ", "="),
        read: from_lines,
    },
];

impl Form {
    /// The name and the value of a commented setting. What explains it has more words.
    fn setting<'a>(&self, line: &'a str) -> Option<(&'a str, &'a str)> {
        let (name, value) = line.strip_prefix(self.marks.0)?.split_once(self.marks.1)?;
        let odd = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        (!name.contains(odd) && name != "Allowed").then_some((name, value))
    }

    /// The file with some lines uncommented.
    fn uncommented(&self, text: &str, taken: impl Fn(usize) -> bool) -> String {
        let lines = text.lines().enumerate().map(|(at, line)| {
            match self.setting(line).is_some() && taken(at) {
                true => line.replacen("# ", "", 1),
                false => line.to_owned(),
            }
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn set(settings: &Settings) -> Vec<&'static str> {
    let set = settings.iter().filter(|s| s.is_set());
    let names = set.map(|setting| setting.name());
    names.filter(|name| *name != "MAS_CONFIG").collect()
}

#[test]
fn a_commented_file_is_right_once_it_is_uncommented() {
    for form in FORMS {
        for backend in [
            None,
            Some("redis"),
            Some("nats"),
            Some("inmemory"),
            Some("kafka"),
        ] {
            let name = form.name;
            let text = (form.print)(&Config::new(), backend).unwrap();
            let (config, _file) = (form.read)(&text);
            let settings = config.resolve();
            assert_eq!(problems(&settings), [""; 0], "{name}");
            let choice: &[&str] = match backend {
                Some(_) => &["PROTOCOL_TYPE"],
                None => &[],
            };
            assert_eq!(set(&settings), choice, "{name}");

            // Each line alone, since a URL and an address would contradict each other.
            let mut lines = 0;
            for (at, line) in text.lines().enumerate() {
                if form.setting(line).is_none() {
                    continue;
                }
                lines += 1;
                let (config, _file) = (form.read)(&form.uncommented(&text, |taken| taken == at));
                let told = problems(&config.resolve());
                // A file that is only an example is not there.
                let excused = |told: &String| told.contains("/etc/mas/");
                assert!(told.iter().all(excused), "{name} {line}: {told:?}");
            }
            assert!(lines > 5, "{text}");
        }
        let wrong = (form.print)(&Config::new(), Some("rabbit")).unwrap_err();
        assert!(
            wrong
                .to_string()
                .contains("kafka or memory or nats or redis"),
            "{wrong}"
        );
    }
}

#[test]
fn every_example_is_allowed_by_its_own_setting() {
    let text = Config::new().example_env(None).unwrap();
    let examples = text.lines().filter_map(|line| FORMS[2].setting(line));
    let mut number = 0;
    for (name, value) in examples {
        let prefix = name.split('_').next().unwrap().to_lowercase();
        let backend = match prefix.as_str() {
            "redis" | "nats" | "kafka" => prefix.as_str(),
            _ => "memory",
        };
        let mut variables = vec![(name, value)];
        if !matches!(name, "PROTOCOL_TYPE" | "TRANSPORT_URL") {
            variables.push(("PROTOCOL_TYPE", backend));
        }
        let told = problems(&resolve(&variables));
        // A file that is only an example is not there.
        let excused = value.starts_with("/etc/mas/");
        assert!(excused || told.is_empty(), "{name}={value}: {told:?}");
        number += 1;
    }
    assert!(number > 50, "{number} of {text}");
    assert!(text.contains("# REDIS_PORT=6379\n"), "{text}");
}

#[test]
fn the_file_of_one_backend_chooses_it_and_shows_its_url() {
    for (backend, scheme, url) in [
        ("redis", "redis", "redis://user:password@localhost:6379/0"),
        ("rediss", "redis", "rediss://user:password@localhost:6379/0"),
        ("nats", "nats", "nats://user:password@localhost:4222"),
        ("kafka", "kafka", "kafka://user:password@localhost:9092"),
        ("kafkas", "kafka", "kafkas://user:password@localhost:9092"),
        ("inmemory", "memory", "inmemory://"),
    ] {
        for form in FORMS {
            let text = (form.print)(&Config::new(), Some(backend)).unwrap();
            let (config, _file) = (form.read)(&text);
            let settings = config.resolve();
            assert_eq!(settings.backend(), scheme, "{}", form.name);
            let urls: Vec<_> = text.lines().filter_map(|line| form.setting(line)).collect();
            let shown = |(_, value): &(&str, &str)| value.trim_matches('"') == url;
            assert!(urls.iter().any(shown), "{backend} as {}: {text}", form.name);
        }
        let text = Config::new().example_toml(Some(backend)).unwrap();
        assert!(
            text.contains(&format!("\ntype = \"{backend}\"\n")),
            "{text}"
        );
    }
    // Of all of them none is chosen.
    let text = Config::new().example_toml(None).unwrap();
    assert!(text.contains("\n# type = \"inmemory\"\n"), "{text}");
}

#[test]
fn every_form_of_the_commented_file_has_the_defaults() {
    for form in FORMS {
        for backend in ["memory", "redis", "kafka", "nats"] {
            let text = (form.print)(&Config::new(), Some(backend)).unwrap();
            let plain = Config::new().backend(backend).resolve();
            // Two tables may have settings of one name, of which one has a default.
            let is_default = |name: &str, value: &str| {
                plain.iter().map(|setting| setting.variable()).any(|v| {
                    let own = match form.name {
                        "env" => v.name().to_owned(),
                        _ => v.key().split_once('.').unwrap().1.to_owned(),
                    };
                    own == name && v.default_value() == Some(value.trim_matches('"'))
                })
            };
            let all: Vec<_> = text.lines().collect();
            let taken = |at: usize| {
                let setting = form.setting(all[at]);
                setting.is_some_and(|(name, value)| is_default(name, value))
            };
            let (config, _file) = (form.read)(&form.uncommented(&text, taken));
            // The file may say its backend by another name; code goes before it.
            let settings = config.backend(backend).resolve();
            assert_eq!(problems(&settings), [""; 0], "{} {backend}", form.name);
            for (here, there) in settings.iter().zip(plain.iter()) {
                assert_eq!(here.name(), there.name());
                if matches!(here.name(), "MAS_CONFIG" | "PROTOCOL_TYPE") {
                    continue;
                }
                let by_default = there.variable().default_value();
                assert_eq!(here.shown(), by_default, "{} {}", form.name, here.name());
                assert_eq!(here.is_set(), by_default.is_some(), "{}", here.name());
                // In their types as well.
                let name = here.name();
                assert_eq!(settings.text(name), plain.text(name));
                assert_eq!(settings.whole(name), plain.whole(name));
                assert_eq!(settings.duration(name), plain.duration(name));
                assert_eq!(settings.list(name), plain.list(name));
            }
        }
    }
}
