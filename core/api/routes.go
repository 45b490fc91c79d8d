package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Realms: whoever is authenticated in one is not thereby authenticated in another.
const (
	RealmMasterReadOnly  = "mesos-master-readonly"
	RealmMasterReadWrite = "mesos-master-readwrite"
	RealmScheduler       = "mesos-master-scheduler"
	RealmAgentReadOnly   = "mesos-agent-readonly"
	RealmAgentReadWrite  = "mesos-agent-readwrite"
	RealmExecutor        = "mesos-agent-executor"
)

// A Route is one row of a server's table. A request is served by the row with the longest path that is
// the request's path or whole leading segments of it, after an optional /master or /slave(1) in front
// and an optional slash at the end. Rows with the same path differ in their methods.
type Route struct {
	Path    string   // begins with a slash
	Aliases []string // further paths
	Exact   bool     // only the path itself, nothing below it
	Methods []string // nil is any: read-only endpoints of Mesos answer every method
	Realm   string   // who authenticates; empty is nobody
	Action  string   // what the Approver is asked for; empty asks nothing
	Streams bool     // an answer may be a stream without an end
	Doc     string   // one line

	// handler answers. An error that it returns becomes the answer, so that it may have written
	// nothing then.
	handler func(w http.ResponseWriter, r *http.Request, principal string) error

	// first, if not nil, runs before the method is checked: who does not lead redirects all methods.
	first func(w http.ResponseWriter, r *http.Request) (done bool)
}

// table finds routes by path.
type table struct {
	prefix string // "/master" or "/slave(1)"
	routes []Route
	byPath map[string][]*Route
}

func newTable(prefix string, routes []Route) *table {
	t := &table{prefix: prefix, routes: routes, byPath: make(map[string][]*Route)}
	for i := range routes {
		r := &routes[i]
		for _, p := range append([]string{r.Path}, r.Aliases...) {
			for _, other := range t.byPath[p] {
				if len(r.Methods) == 0 || len(other.Methods) == 0 ||
					slices.ContainsFunc(r.Methods, func(m string) bool { return slices.Contains(other.Methods, m) }) {
					panic("two routes for " + p)
				}
			}
			t.byPath[p] = append(t.byPath[p], r)
		}
	}
	return t
}

// match is a request's row, and what its path and method say beyond it.
type match struct {
	*Route
	rest  string   // what of the path the row's own path does not cover, without slashes around it
	allow []string // the methods of all rows of that path; nil is any
}

// serves tells whether the row takes a method.
func (r *Route) serves(method string) bool {
	return r.Methods == nil || slices.Contains(r.Methods, method)
}

// choose picks the row that takes a method, else the first: it then refuses the method, after it has
// asked who sends it.
func choose(rows []*Route, method, rest string) match {
	m := match{Route: rows[0], rest: rest}
	for i := len(rows) - 1; i >= 0; i-- {
		if rows[i].serves(method) {
			m.Route = rows[i]
		}
	}
	for _, r := range rows {
		m.allow = append(m.allow, r.Methods...)
	}
	return m
}

// find returns the row for a request; its Route is nil when there is none.
func (t *table) find(method, path string) match {
	if after, ok := strings.CutPrefix(path, t.prefix); ok && (after == "" || after[0] == '/') {
		path = after
	}
	path = strings.TrimSuffix(path, "/")
	if path == "" {
		path = "/"
	}
	if path[0] != '/' {
		return match{}
	}
	for p := path; p != ""; p = p[:strings.LastIndexByte(p, '/')] {
		if rows := t.byPath[p]; rows != nil && (p == path || !rows[0].Exact) {
			return choose(rows, method, strings.Trim(path[len(p):], "/"))
		}
	}
	if rows := t.byPath["/"]; rows != nil && !rows[0].Exact {
		return choose(rows, method, strings.Trim(path, "/"))
	}
	return match{}
}

var (
	onlyPost = []string{http.MethodPost}
	onlyGet  = []string{http.MethodGet}
)

func (m *masterEdge) routes() []Route {
	routes := []Route{
		{
			Path: "/api/v1/scheduler", Methods: onlyPost, Realm: RealmScheduler, Streams: true,
			Doc:     "The scheduler API: one POST per call of a framework.",
			handler: m.scheduler, first: m.notLeading,
		},
		{
			Path: "/api/v1", Methods: onlyPost, Realm: RealmMasterReadWrite, Streams: true,
			Doc:     "The operator API: one POST per call.",
			handler: m.operator, first: m.notLeading,
		},
		{
			Path: "/redirect", Exact: true,
			Doc:     "Redirects to the leading master.",
			handler: m.redirect,
		},
		{
			Path: "/", Exact: m.ui == nil,
			Doc:     "The web page.",
			handler: m.root,
		},
	}
	for _, l := range []struct {
		path, action, doc string
		anyMaster         bool // not only the leader answers
	}{
		{"/state", "", "Everything: agents, frameworks, tasks.", false},
		{"/state-summary", "", "Counts of tasks by agent and framework.", false},
		{"/slaves", "", "The agents.", false},
		{"/frameworks", "", "The frameworks and their tasks.", false},
		{"/tasks", "", "The tasks; limit, offset, order, framework_id, task_id.", false},
		{"/roles", "", "The roles with their resources.", false},
		{"/flags", "VIEW_FLAGS", "The flags this master runs with.", true},
		{"/metrics/snapshot", "GET_ENDPOINT_WITH_PATH", "Metrics as one flat object.", true},
	} {
		r := Route{Path: l.path, Realm: RealmMasterReadOnly, Action: l.action, Doc: l.doc, handler: m.legacy(l.path, m.master.Legacy)}
		if !l.anyMaster {
			r.first = m.notLeading
		}
		routes = append(routes, r)
	}
	routes = append(routes, Route{
		Path: "/mosaic/v1/explain", Exact: true, Methods: onlyGet, Realm: RealmMasterReadOnly,
		Doc:     "Why a framework or role is not offered what it needs; framework, role, need.",
		handler: m.legacy("/mosaic/v1/explain", m.master.Legacy), first: m.notLeading,
	})
	routes = append(routes, m.writeRoutes()...)
	return append(routes, m.commonRoutes(RealmMasterReadOnly)...)
}

func (a *agentEdge) routes() []Route {
	routes := []Route{
		{
			Path: "/api/v1/executor", Methods: onlyPost, Realm: RealmExecutor, Streams: true,
			Doc:     "The executor API: one POST per call of an executor.",
			handler: a.executor, first: a.notRecovered,
		},
		{
			Path: "/api/v1", Methods: onlyPost, Realm: RealmAgentReadWrite, Streams: true,
			Doc:     "The operator API of the agent: one POST per call.",
			handler: a.operator, first: a.notRecovered,
		},
		{
			Path: "/", Exact: true,
			Doc:     "Answers 200, for those who follow a redirect here.",
			handler: emptyOK,
		},
	}
	for _, l := range []struct {
		path, action, doc string
		recovering        bool // answers also before recovery has ended
	}{
		{"/state", "", "Everything: resources, frameworks, executors, tasks.", false},
		{"/containers", "GET_ENDPOINT_WITH_PATH", "The containers with status and usage.", false},
		{"/monitor/statistics", "GET_ENDPOINT_WITH_PATH", "Usage of each executor's container.", false},
		{"/flags", "VIEW_FLAGS", "The flags this agent runs with.", true},
		{"/metrics/snapshot", "GET_ENDPOINT_WITH_PATH", "Metrics as one flat object.", true},
	} {
		r := Route{Path: l.path, Realm: RealmAgentReadOnly, Action: l.action, Doc: l.doc, handler: a.legacy(l.path, a.agent.Legacy)}
		if !l.recovering {
			r.first = a.notRecovered
		}
		routes = append(routes, r)
	}
	if a.modules != nil {
		routes = append(routes, Route{
			Path: "/mosaic/v1/modules", Exact: true, Realm: RealmAgentReadOnly, Action: "GET_ENDPOINT_WITH_PATH",
			Doc: "The agent's modules and how they are.",
			handler: a.legacy("/mosaic/v1/modules", func(context.Context, string, string, url.Values) ([]byte, error) {
				return json.Marshal(a.modules())
			}),
		})
	}
	if a.modules != nil {
		routes = append(routes, Route{
			Path: "/modules", Exact: true, Realm: RealmAgentReadOnly, Action: "GET_ENDPOINT_WITH_PATH",
			Doc: "The modules and how they are; Mesos has no such endpoint.", handler: a.listModules,
		})
	}
	routes = append(routes, a.imageRoutes()...)
	return append(routes, a.commonRoutes(RealmAgentReadOnly)...)
}

// commonRoutes are the rows that master and agent share.
func (e *edge) commonRoutes(readOnly string) []Route {
	routes := []Route{
		{Path: "/health", Doc: "Answers 200 while the process serves.", handler: emptyOK},
		{Path: "/version", Doc: "The version, as dotted numbers, and the build.", handler: e.version},
		{Path: "/files/browse", Aliases: []string{"/files/browse.json"}, Realm: readOnly, Doc: "Lists a folder of a sandbox; path.", handler: e.browse},
		{Path: "/files/read", Aliases: []string{"/files/read.json"}, Realm: readOnly, Doc: "Reads a piece of a file; path, offset, length.", handler: e.read},
		{Path: "/files/download", Aliases: []string{"/files/download.json"}, Realm: readOnly, Doc: "A whole file; path.", handler: e.download},
	}
	if e.cfg.Metrics != nil {
		routes = append(routes, Route{
			Path: "/metrics", Exact: true, Realm: readOnly,
			Doc: "Metrics in the text format of Prometheus.", handler: e.prometheus(),
		})
	}
	return routes
}
