//! What others say: of another backend, and on a command line.

use super::*;

#[test]
fn a_misspelt_setting_of_another_backend_is_a_caution() {
    for chosen in [&[][..], &[REDIS], &[("TRANSPORT_URL", "redis://h")]] {
        let mut variables = chosen.to_vec();
        variables.push(("KAFKA_BROKER", SECRET));
        let settings = resolve(&variables);
        assert_eq!(problems(&settings), [""; 0], "{chosen:?}");
        let told: Vec<_> = settings.cautions().iter().map(|c| c.to_string()).collect();
        assert_eq!(
            told,
            [
                "KAFKA_BROKER: there is no such setting; did you mean KAFKA_BROKERS? Neither has \
                 an effect while kafka is not the backend"
            ]
        );
    }
    // Of its own it is wrong, by whichever name the backend was chosen.
    let url = ("TRANSPORT_URL", "valkey://h");
    let told = problems(&resolve(&[url, ("REDIS_PASWORD", SECRET)]));
    assert!(told[0].starts_with("REDIS_PASWORD: there is no such setting"));
    let wrong = problems(&resolve(&[("MAS_NAME_SPACE", "a"), ("KAFKA_BROKER", "b")]));
    assert!(
        wrong.len() == 1 && wrong[0].starts_with("MAS_NAME_SPACE"),
        "{wrong:?}"
    );
}

#[test]
fn what_a_program_passes_on_from_its_command_line_is_told_as_such() {
    let config = Config::from_vars([("TRANSPORT_URL", "redis://h")]).on_command_line();
    let settings = config.backend("nats").set("MAS_NAMESPACE", "a.b").resolve();
    assert_eq!(
        *settings.get("MAS_NAMESPACE").unwrap().origin(),
        Origin::CommandLine
    );
    let told = problems(&settings).join("\n");
    for part in [
        "PROTOCOL_TYPE=nats (command line): set on the command line, it contradicts \
         TRANSPORT_URL=redis://h, set in the environment; remove one of the two, or set \
         TRANSPORT_URL=nats://… on the command line",
        "MAS_NAMESPACE=a.b (command line): not allowed",
    ] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
}
