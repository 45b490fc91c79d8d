package registry

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// helpers puts programs into a folder that is searched first.
func helpers(t *testing.T, scripts map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

func TestHelpersSayWhoWeAre(t *testing.T) {
	dir := helpers(t, map[string]string{
		"cloud": `read host; echo "$1 $host" >>` + "\"$(dirname \"$0\")/asked\"" + `; echo '{"ServerURL":"'$host'","Username":"AWS","Secret":"of-'$host'"}'`,
		"token": `echo '{"Username":"<token>","Secret":"refresh"}'`,
		"empty": `echo "credentials not found in native keychain"; exit 1`,
		"angry": `echo "no role for this machine"; echo more; exit 1`,
		"mute":  `exit 3`,
		"loud":  `yes || true`,
		"vague": `echo '{"Username":"u"}'`,
		"talks": `echo 'topsecret'`,
	})
	operators, err := parseCredentials([]byte(`{"auths":{"known.example.com":{"username":"me","password":"pw"}},"credsStore":"cloud",
		"credHelpers":{"token.example.com":"token","empty.example.com":"empty","known.example.com:5000":"token"}}`))
	if err != nil {
		t.Fatalf("parseCredentials: %v", err)
	}
	for host, want := range map[string]credential{
		"known.example.com": {user: "me", secret: "pw"}, "token.example.com": {secret: "refresh"}, "empty.example.com": {},
		"other.example.com:1": {user: "AWS", secret: "of-other.example.com:1"}, "docker.io": {user: "AWS", secret: "of-https://index.docker.io/v1/"},
	} {
		ask := operators.asked(t.Context(), host)
		for range 2 {
			if got, err := ask(); err != nil || got != want {
				t.Errorf("credentials for %s = %v, %v, want %v", host, got, err, want)
			}
		}
	}
	asked, err := os.ReadFile(filepath.Join(dir, "asked"))
	if err != nil || strings.Count(string(asked), "get other.example.com:1\n") != 1 || strings.Count(string(asked), "\n") != 2 {
		t.Errorf("the helper was asked %q, %v, want get for two registries, once each", asked, err)
	}
	for name, want := range map[string]string{
		"angry": "no role for this machine", "mute": "exit status 3", "loud": "too much", "vague": "has no secret", "talks": "has no secret",
		"missing": "not in the agent's PATH", "../../bin/sh": "want a name", "": "want a name",
	} {
		got, err := askHelper(t.Context(), name, "x.example.com")
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "topsecret") || got != (credential{}) {
			t.Errorf("askHelper(%q) = %v, %v, want %q", name, got, err, want)
		}
	}
}

func TestAHelperThatHangsIsKilledWithWhatItStarted(t *testing.T) {
	dir := helpers(t, map[string]string{"hangs": `sleep 1000 & echo $! >"$(dirname "$0")/child"; wait`})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if got, err := askHelper(ctx, "hangs", "x.example.com"); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("askHelper = %v, %v, want that there was no answer", got, err)
	}
	child, err := os.ReadFile(filepath.Join(dir, "child"))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		stat, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(child)), "stat"))
		if err != nil || strings.Contains(string(stat), ") Z ") { // its parent may not look after it
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("what the helper started runs on: %s", stat)
		}
	}
}

func TestHelpersThatATaskNamesAreNotRun(t *testing.T) {
	dir := helpers(t, map[string]string{"cloud": `touch "$(dirname "$0")/ran"`})
	tasks, err := ParseCredentials([]byte(`{"auths":{"x.example.com":{"username":"me","password":"pw"}},"credsStore":"cloud","credHelpers":{"y.example.com":"cloud"}}`))
	if err != nil {
		t.Fatalf("ParseCredentials: %v", err)
	}
	for _, host := range []string{"x.example.com", "y.example.com", "z.example.com"} {
		if _, err := tasks.asked(t.Context(), host)(); err != nil {
			t.Errorf("credentials for %s: %v", host, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("a helper was run that a task's configuration names")
	}
	// The operator's helper for a registry does not stand in the way of what the task has for it.
	operators, err := parseCredentials([]byte(`{"credHelpers":{"x.example.com":"cloud","y.example.com":"cloud"}}`))
	if err != nil {
		t.Fatalf("parseCredentials: %v", err)
	}
	both := tasks.over(operators)
	if got := userAt(both, "x.example.com"); got != "me" {
		t.Errorf("user at x.example.com = %q, want the task's", got)
	}
	if _, helper := both.of("y.example.com"); helper != "cloud" {
		t.Errorf("helper for y.example.com = %q, want the operator's", helper)
	}
}
