package api

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
)

// maxFormFields bounds the fields of a form. Mesos's forms have two.
const maxFormFields = 64

// writeRoutes are the rows of the older endpoints that change something, each with the row that reads,
// where there is one.
func (m *masterEdge) writeRoutes() []Route {
	var routes []Route
	for _, l := range []struct{ path, doc string }{
		{"/quota", "The quotas of the roles."},
		{"/weights", "The weights of the roles that have one set."},
		{"/maintenance/schedule", "The windows of maintenance that are planned."},
		{"/maintenance/status", "The machines in maintenance, and what frameworks answered."},
	} {
		routes = append(routes, Route{
			Path: l.path, Methods: onlyGet, Realm: RealmMasterReadOnly, Doc: l.doc,
			handler: m.legacy(l.path, m.master.Legacy), first: m.notLeading,
		})
	}
	for _, w := range []struct {
		path, method, action, doc string
		form                      bool
		empty                     int // status of an answer without a body
	}{
		{"/quota", http.MethodPost, "UPDATE_QUOTA", "Sets a role's quota; JSON, deprecated.", false, http.StatusOK},
		{"/quota", http.MethodDelete, "UPDATE_QUOTA", "Removes the quota of the role that follows in the path; deprecated.", false, http.StatusOK},
		{"/weights", http.MethodPut, "UPDATE_WEIGHT", "Sets weights of roles; JSON.", false, http.StatusOK},
		{"/maintenance/schedule", http.MethodPost, "UPDATE_MAINTENANCE_SCHEDULE", "Replaces the schedule; JSON.", false, http.StatusOK},
		{"/machine/down", http.MethodPost, "START_MAINTENANCE", "Takes machines down for maintenance; JSON.", false, http.StatusOK},
		{"/machine/up", http.MethodPost, "STOP_MAINTENANCE", "Takes machines back from maintenance; JSON.", false, http.StatusOK},
		{"/reserve", http.MethodPost, "RESERVE_RESOURCES", "Reserves resources; slaveId, resources.", true, http.StatusAccepted},
		{"/unreserve", http.MethodPost, "UNRESERVE_RESOURCES", "Frees reserved resources; slaveId, resources.", true, http.StatusAccepted},
		{"/create-volumes", http.MethodPost, "CREATE_VOLUME", "Makes persistent volumes; slaveId, volumes.", true, http.StatusAccepted},
		{"/destroy-volumes", http.MethodPost, "DESTROY_VOLUME", "Destroys persistent volumes and what is in them; slaveId, volumes.", true, http.StatusAccepted},
		{"/teardown", http.MethodPost, "TEARDOWN_FRAMEWORK", "Ends a framework and its tasks; frameworkId.", true, http.StatusOK},
	} {
		routes = append(routes, Route{
			Path: w.path, Methods: []string{w.method}, Realm: RealmMasterReadWrite, Action: w.action, Doc: w.doc,
			handler: m.legacyWrite(w.path, w.form, w.empty), first: m.notLeading,
		})
	}
	return routes
}

// legacyWrite answers an older endpoint that changes something.
func (m *masterEdge) legacyWrite(path string, isForm bool, empty int) func(http.ResponseWriter, *http.Request, string) error {
	return func(w http.ResponseWriter, r *http.Request, principal string) error {
		endpoint := path
		if r.Method == http.MethodDelete {
			// Mesos takes one segment only, and so cannot name a role within a role.
			_, role, _ := strings.Cut(r.URL.Path, path+"/")
			if role = strings.Trim(role, "/"); role == "" {
				return statusf(http.StatusBadRequest, "Failed to parse request path '%s': Expecting a role after '%s'", clip(r.URL.Path), path)
			}
			endpoint += "/" + role
		}
		query, err := readQuery(r)
		if err != nil {
			return err
		}
		body, err := readBody(w, r)
		if err != nil {
			return err
		}
		var form url.Values
		if isForm {
			// Whatever its Content-Type says, as in Mesos: some clients send none.
			if form, err = parseForm(body); err != nil {
				return err
			}
			body = nil
		}
		answer, err := m.master.LegacyWrite(r.Context(), principal, endpoint, r.Method, query, form, body)
		if err != nil {
			return err
		}
		if answer == nil {
			writeEmpty(w, empty)
			return nil
		}
		writeBody(w, r, codec.TypeJSON, answer)
		return nil
	}
}

// parseForm decodes a body of NAME=VALUE pairs.
func parseForm(body []byte) (url.Values, error) {
	text := string(body)
	if strings.Count(text, "&") >= maxFormFields {
		return nil, statusf(http.StatusBadRequest, "Unable to decode query string: more than %d fields", maxFormFields)
	}
	form, err := url.ParseQuery(text)
	if err != nil {
		return nil, statusf(http.StatusBadRequest, "Unable to decode query string: %s", clip(err.Error()))
	}
	return form, nil
}
