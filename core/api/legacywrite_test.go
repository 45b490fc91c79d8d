package api_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/mosaic-cluster/mosaic/core/api"
)

const sendForm = "Content-Type: application/x-www-form-urlencoded"

func TestTheOlderEndpointsThatChangeSomething(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	resources := `[{"name":"cpus","type":"SCALAR","scalar":{"value":1},"reservations":[{"role":"a b"}]}]`
	volumes := url.Values{"slaveId": {"s-1"}, "volumes": {resources}}
	for _, c := range []struct {
		method, path, body string
		status             int
		endpoint           string
		form               url.Values
	}{
		{"POST", "/quota", `{"role":"a","guarantee":[]}`, 200, "/quota", nil},
		{"POST", "/quota?force=true", `{}`, 200, "/quota", nil},
		{"DELETE", "/quota/eng", "", 200, "/quota/eng", nil},
		{"DELETE", "/quota/eng/dev/", "", 200, "/quota/eng/dev", nil},
		{"DELETE", "/quota/eng%2Fquota%2Fdev", "", 200, "/quota/eng/quota/dev", nil},
		{"PUT", "/weights", `[{"role":"a","weight":2}]`, 200, "/weights", nil},
		{"POST", "/maintenance/schedule", `{"windows":[]}`, 200, "/maintenance/schedule", nil},
		{"POST", "/machine/down", `[{"ip":"10.0.0.1"}]`, 200, "/machine/down", nil},
		{"POST", "/machine/up", `[{"ip":"10.0.0.1"}]`, 200, "/machine/up", nil},
		{"POST", "/reserve", "slaveId=s-1&resources=" + url.QueryEscape(resources), 202, "/reserve", url.Values{"slaveId": {"s-1"}, "resources": {resources}}},
		{"POST", "/unreserve", "slaveId=s-1&resources=" + strings.ReplaceAll(resources, " ", "+"), 202, "/unreserve", url.Values{"slaveId": {"s-1"}, "resources": {resources}}},
		{"POST", "/create-volumes", volumes.Encode(), 202, "/create-volumes", volumes},
		{"POST", "/destroy-volumes", volumes.Encode(), 202, "/destroy-volumes", volumes},
		{"POST", "/teardown", "frameworkId=f-1", 200, "/teardown", url.Values{"frameworkId": {"f-1"}}},
		{"POST", "/teardown", "", 200, "/teardown", url.Values{}},
	} {
		for _, prefix := range []string{"", "/master"} {
			m.writes = nil
			resp, body := do(t, request(t, c.method, server.URL+prefix+c.path, c.body))
			if resp.StatusCode != c.status || body != "" || resp.Header.Get("Content-Length") != "0" {
				t.Errorf("%s %s: %d %q, want an empty %d", c.method, prefix+c.path, resp.StatusCode, body, c.status)
			}
			u, err := url.Parse(c.path)
			if err != nil {
				t.Fatal(err)
			}
			want := legacyWrite{endpoint: c.endpoint, method: c.method, query: u.Query(), form: c.form}
			if c.form == nil {
				want.body = c.body
			}
			if len(m.writes) != 1 || !reflect.DeepEqual(m.writes[0], want) {
				t.Errorf("%s %s: the master was called with %+v, want %+v", c.method, prefix+c.path, m.writes, want)
			}
		}
	}
}

func TestAnOlderEndpointAnswersWhatTheMasterSays(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	for _, c := range []struct {
		what, method, path, body string
		headers                  []string
		status                   int
		text                     string
	}{
		{"agent unknown", "POST", "/reserve", "slaveId=unknown", []string{sendForm}, 400, "No agent found"},
		{"conflict", "POST", "/unreserve", "slaveId=busy", []string{sendForm}, 409, "Invalid RESERVE"},
		{"a body", "POST", "/quota", `"answer"`, []string{sendJSON}, 200, `{"answered":true}`},
		{"form that does not parse", "POST", "/teardown", "frameworkId=%zz", nil, 400, "Unable to decode query string"},
		{"form of too many fields", "POST", "/teardown", strings.Repeat("a=b&", 64), nil, 400, "more than 64 fields"},
		{"no role", "DELETE", "/master/quota", "", nil, 400, "Failed to parse request path '/master/quota'"},
		{"no role but a slash", "DELETE", "/quota/", "", nil, 400, "Failed to parse request path '/quota/'"},
		{"encoding", "POST", "/quota", "x", []string{"Content-Encoding: br"}, 415, "Content-Encoding"},
	} {
		resp, body := do(t, request(t, c.method, server.URL+c.path, c.body, c.headers...))
		if resp.StatusCode != c.status || !strings.Contains(body, c.text) {
			t.Errorf("%s: %d %q, want %d %q", c.what, resp.StatusCode, body, c.status, c.text)
		}
	}
}

func TestABodyOfAnOlderEndpointIsBounded(t *testing.T) {
	m := newFakeMaster()
	server := serveMaster(t, m)
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	chunk := bytes.Repeat([]byte(" "), 1<<20)
	for range 65 {
		if _, err := z.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	resp, body := do(t, request(t, "POST", server.URL+"/reserve", packed.String(), "Content-Encoding: gzip"))
	if resp.StatusCode != 413 || len(m.writes) != 0 {
		t.Errorf("/reserve with 65 MiB of spaces: %d %q and %d calls, want 413 and none", resp.StatusCode, body, len(m.writes))
	}
}

func TestAnOlderEndpointRefusesOtherMethods(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	for _, c := range []struct{ method, path, allow string }{
		{"PUT", "/quota", "GET, POST, DELETE"},
		{"POST", "/weights", "GET, PUT"},
		{"DELETE", "/master/maintenance/schedule", "GET, POST"},
		{"POST", "/maintenance/status", "GET"},
		{"GET", "/machine/down", "POST"},
		{"GET", "/teardown", "POST"},
		{"GET", "/reserve", "POST"},
		{"POST", "/mosaic/v1/explain", "GET"},
	} {
		resp, body := do(t, request(t, c.method, server.URL+c.path, ""))
		want := "Expecting one of { '" + strings.ReplaceAll(c.allow, ", ", "', '") + "' }, but received '" + c.method + "'"
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != c.allow || body != want {
			t.Errorf("%s %s: %d, Allow %q, %q; want 405, %q, %q", c.method, c.path, resp.StatusCode, resp.Header.Get("Allow"), body, c.allow, want)
		}
	}
}

func TestTheOlderEndpointsThatRead(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	for _, path := range []string{"/quota", "/weights", "/maintenance/schedule", "/maintenance/status", "/mosaic/v1/explain"} {
		resp, body := do(t, request(t, "GET", server.URL+"/master"+path+"?framework_id=f", ""))
		if want := `{"endpoint":"` + path + `","framework_id":"f"}`; resp.StatusCode != 200 || body != want || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("GET %s: %d %q, want %s", path, resp.StatusCode, body, want)
		}
		if _, body = do(t, request(t, "GET", server.URL+path+"?jsonp=f", "")); body != `f({"endpoint":"`+path+`"});` {
			t.Errorf("GET %s?jsonp=f: %q, want a script", path, body)
		}
	}
}

func TestOnlyTheLeaderChangesSomething(t *testing.T) {
	m := newFakeMaster()
	m.setLeader(false, false, "10.0.0.1:5050")
	server := serveMaster(t, m)
	resp, _ := do(t, request(t, "DELETE", server.URL+"/quota/eng?x=y", ""))
	if got := resp.Header.Get("Location"); resp.StatusCode != 307 || got != "//10.0.0.1:5050/quota/eng?x=y" || len(m.writes) != 0 {
		t.Errorf("DELETE /quota/eng on a follower: %d to %q, %d calls; want a redirect and none", resp.StatusCode, got, len(m.writes))
	}
}

// nobody authenticates no one but whom the header User names.
type nobody struct{}

func (nobody) Authenticate(r *http.Request) (string, error) {
	if p := r.Header.Get("User"); p != "" {
		return p, nil
	}
	return "", errors.New("no credentials")
}

// asked is an approver that refuses eve and remembers what it was asked for.
type asked struct{ actions []string }

func (a *asked) Approve(_ context.Context, principal, action, object string) error {
	a.actions = append(a.actions, action+" "+object)
	if principal == "eve" {
		return api.ErrForbidden
	}
	return nil
}

func TestWhoReadsAndWhoWritesAreAskedInTheirOwnRealms(t *testing.T) {
	m, approver := newFakeMaster(), &asked{}
	server := serveMaster(t, m, func(c *api.Config, _ *api.MasterDeps) {
		c.Authenticators = map[string]api.Authenticator{api.RealmMasterReadWrite: nobody{}}
		c.Approver = approver
	})
	if resp, _ := do(t, request(t, "GET", server.URL+"/quota", "")); resp.StatusCode != 200 {
		t.Errorf("GET /quota: %d, want 200: nobody authenticates readers here", resp.StatusCode)
	}
	if resp, _ := do(t, request(t, "POST", server.URL+"/quota", "{}")); resp.StatusCode != 401 {
		t.Errorf("POST /quota without credentials: %d, want 401", resp.StatusCode)
	}
	if resp, _ := do(t, request(t, "POST", server.URL+"/quota", "{}", "User: eve")); resp.StatusCode != 403 || len(m.writes) != 0 {
		t.Errorf("POST /quota as eve: %d and %d calls, want 403 and none", resp.StatusCode, len(m.writes))
	}
	if resp, _ := do(t, request(t, "POST", server.URL+"/quota", "{}", "User: bob")); resp.StatusCode != 200 || len(m.writes) != 1 || m.writes[0].principal != "bob" {
		t.Errorf("POST /quota as bob: %d and calls %+v, want 200 and one as bob", resp.StatusCode, m.writes)
	}
	if want := []string{"UPDATE_QUOTA /quota", "UPDATE_QUOTA /quota"}; !reflect.DeepEqual(approver.actions, want) {
		t.Errorf("the approver was asked for %q, want %q", approver.actions, want)
	}
}

func TestAQueryIsReadWholeOrRefused(t *testing.T) {
	server := serveMaster(t, newFakeMaster())
	for query, want := range map[string]string{
		"framework_id=cpus:4;mem:8192":   "cpus:4;mem:8192", // Go's own parser drops such a parameter
		"framework_id=cpus:4%3Bmem:8192": "cpus:4;mem:8192",
		"x=;&framework_id=f":             "f",
	} {
		resp, body := do(t, request(t, "GET", server.URL+"/mosaic/v1/explain?"+query, ""))
		if !strings.Contains(body, `"framework_id":"`+want+`"`) {
			t.Errorf("GET ?%s: %d %q, want framework_id %q", query, resp.StatusCode, body, want)
		}
	}
	for _, path := range []string{"/mosaic/v1/explain", "/state", "/version", "/files/read", "/files/browse", "/files/download"} {
		resp, body := do(t, request(t, "GET", server.URL+path+"?path=%zz", ""))
		if resp.StatusCode != 400 || !strings.Contains(body, "query string") {
			t.Errorf("GET %s with a broken query: %d %q, want 400", path, resp.StatusCode, body)
		}
	}
}
