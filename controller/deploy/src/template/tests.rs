use serde_json::{Value, json};

use super::{parse, render};

fn try_with(text: &str, data: &Value) -> Result<String, String> {
    let (nodes, defines) = parse(text)?;
    render(&nodes, &defines, data)
}

fn check(text: &str, expected: &str) {
    let data = json!({
        "Values": {"s": "text", "n": 3, "zero": 0, "t": true, "f": false, "empty": "", "none": null,
                   "list": ["a", "b"], "no": [], "map": {"k": {"j": "v"}}, "objects": [{"x": 1}, {"x": 2}]},
        "Name": "top",
    });
    assert_eq!(try_with(text, &data).as_deref(), Ok(expected), "{text}");
}

fn fails(text: &str, words: &str) {
    let data = json!({"Values": {"s": "text", "list": ["a"], "map": {"k": 1}}});
    let error = try_with(text, &data).expect_err(text);
    assert!(error.contains(words), "{text}: {error}");
}

#[test]
fn values_and_strings_are_printed() {
    check("a {{ .Values.s }} b", "a text b");
    check("{{ $.Name }}{{ .Values.n }}{{ .Values.t }}", "top3true");
    check(r#"{{ "}} \" x" }}{{ `raw \` }}"#, r#"}} " xraw \"#);
    check("no action", "no action");
}

#[test]
fn white_space_is_trimmed_where_asked() {
    check("a \n {{- .Name -}} \n b", "atopb");
    check("a {{ .Name -}} \n b", "a topb");
    check("a\n{{- /* a }} comment */}}\nb", "a\nb");
    check("{{ -3 }}", "-3");
}

#[test]
fn conditions_take_the_first_branch_that_holds() {
    let text = "{{ if .Values.f }}1{{ else if .Values.empty }}2{{ else if .Values.t }}3{{ else }}4{{ end }}";
    check(text, "3");
    check("{{ if .Values.no }}1{{ else }}2{{ end }}", "2");
    check("{{ if .Values.zero }}1{{ end }}", "");
    check(
        "{{ if .Values.map }}1{{ end }}{{ if .Values.missing }}2{{ end }}",
        "1",
    );
    check(
        "{{ if and .Values.t .Values.list }}1{{ end }}{{ if or .Values.f .Values.s }}2{{ end }}",
        "12",
    );
    check(
        "{{ if not .Values.f }}1{{ end }}{{ if eq .Values.s \"text\" }}2{{ end }}{{ if ne .Values.s \"x\" }}3{{ end }}",
        "123",
    );
    check(
        "{{ if gt .Values.n 2 }}1{{ end }}{{ if gt (int .Values.n) 3 }}2{{ end }}",
        "1",
    );
}

#[test]
fn a_list_is_asked_what_it_has() {
    check(
        "{{ if .Values.list.Has \"b\" }}1{{ end }}{{ if $.Values.list.Has \"c\" }}2{{ end }}",
        "1",
    );
    check("{{ if not (.Values.no.Has \"a\") }}1{{ end }}", "1");
    fails("{{ .Values.list.Has }}", "a value is missing");
    fails("{{ .Values.map.Has \"k\" }}", "Has");
}

#[test]
fn range_and_with_move_the_dot_but_not_the_root() {
    check(
        "{{ range .Values.list }}{{ . }}{{ $.Name }},{{ end }}",
        "atop,btop,",
    );
    check("{{ range .Values.objects }}{{ .x }}{{ end }}", "12");
    check("{{ range .Values.no }}x{{ else }}none{{ end }}", "none");
    check(
        "{{ with .Values.map.k }}{{ .j }}{{ end }}{{ with .Values.none }}x{{ else }}{{ .Name }}{{ end }}",
        "vtop",
    );
}

#[test]
fn functions_and_pipes() {
    check(
        "{{ .Values.s | quote }}{{ quote .Values.n }}",
        "\"text\"\"3\"",
    );
    check(
        "{{ .Values.empty | default \"d\" }}{{ default 1 .Values.n }}",
        "d3",
    );
    check("{{ toYaml .Values.map | nindent 2 }}", "\n  k:\n    j: v");
    check(
        "x:\n{{ .Values.list | toYaml | indent 1 }}",
        "x:\n - a\n - b",
    );
    check(
        "{{ toJson .Values.list }}{{ join \"-\" .Values.list }}",
        "[\"a\",\"b\"]a-b",
    );
    check(
        "{{ printf \"%s/%d%%\" .Values.s 7 }}{{ trimSuffix \"xt\" .Values.s }}",
        "text/7%te",
    );
    check(
        "{{ required \"m\" .Values.s }}{{ toString .Values.t }}",
        "texttrue",
    );
}

#[test]
fn named_parts_are_included_with_their_own_root() {
    let text = "{{ define \"p\" }}{{ $.k.j }}{{ end }}{{ include \"p\" .Values.map | quote }}";
    check(text, "\"v\"");
}

#[test]
fn mistakes_name_the_line() {
    fails(
        "\n\n{{ .Values.missing }}",
        "line 3: there is no such value",
    );
    fails("{{ .Values.s.x }}", "has no fields");
    fails("{{ .Values.list }}", "toYaml");
    fails("{{ nonsense .Values.s }}", "no function \"nonsense\"");
    fails("{{ include \"x\" . }}", "nothing is defined");
    fails("{{ fail \"stop\" }}", "stop");
    fails("{{ required \"wanted\" .Values.missing }}", "wanted");
    fails("{{ range .Values.map }}{{ end }}", "lists only");
    fails(
        "{{ define \"p\" }}{{ include \"p\" . }}{{ end }}{{ include \"p\" . }}",
        "deep",
    );
}

#[test]
fn what_is_outside_the_subset_is_refused() {
    for text in [
        "{{ if .a }}",
        "{{ end }}",
        "{{ else }}",
        "{{ .a",
        "{{ $x := 1 }}",
        "{{ (.a }}",
        "{{ .a | .b }}",
        "{{ \"open }}",
        "{{ range $i, $v := .a }}{{ end }}",
        "{{ template \"x\" }}",
        "{{ define \"a\" }}",
        "{{ define \"a\" }}{{ end }}{{ define \"a\" }}{{ end }}",
        "{{ .a.-b }}",
        "{{ 1.5 }}",
        "{{ }}",
        "{{ if .a }}{{ else }}{{ else }}{{ end }}",
        "{{ printf \"%v\" 1 }}",
    ] {
        assert!(try_with(text, &json!({"a": 1})).is_err(), "{text}");
    }
}
