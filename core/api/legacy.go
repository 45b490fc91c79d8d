package api

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mosaic-cluster/mosaic/core/api/codec"
)

// legacy answers an older JSON endpoint with the body that produce makes.
func (e *edge) legacy(path string, produce func(context.Context, string, string, url.Values) ([]byte, error)) func(http.ResponseWriter, *http.Request, string) error {
	return func(w http.ResponseWriter, r *http.Request, principal string) error {
		query, err := readQuery(r)
		if err != nil {
			return err
		}
		body, err := produce(r.Context(), principal, path, query)
		if err != nil {
			return err
		}
		return writeLegacy(w, r, query, body)
	}
}

// readQuery decodes a query whole, or refuses it: one that lost a parameter on the way would be answered wrongly.
// A bare semicolon stands for itself, as in need=cpus:4;mem:8192.
func readQuery(r *http.Request) (url.Values, error) {
	query, err := url.ParseQuery(strings.ReplaceAll(r.URL.RawQuery, ";", "%3B"))
	if err != nil {
		return nil, statusf(http.StatusBadRequest, "Unable to decode query string: %s", clip(err.Error()))
	}
	return query, nil
}

// callback is what a jsonp parameter may be: a function's name, also one in an object or a list.
var callback = regexp.MustCompile(`^[A-Za-z_$][A-Za-z0-9_$.\[\]]{0,127}$`)

// writeLegacy answers with a JSON body, or with a script that calls the function named by jsonp.
func writeLegacy(w http.ResponseWriter, r *http.Request, query url.Values, body []byte) error {
	f := query.Get("jsonp")
	if f == "" {
		writeBody(w, r, codec.TypeJSON, body)
		return nil
	}
	if !callback.MatchString(f) {
		return statusf(http.StatusBadRequest, "Invalid 'jsonp' parameter")
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	script := make([]byte, 0, len(f)+len(body)+3)
	script = append(script, f...)
	script = append(script, '(')
	script = append(script, body...)
	writeBody(w, r, "text/javascript", append(script, ");"...))
	return nil
}

// version answers /version, on any master, whether it leads or not: clients ask before they subscribe.
func (e *edge) version(w http.ResponseWriter, r *http.Request, _ string) error {
	query, err := readQuery(r)
	if err != nil {
		return err
	}
	return writeLegacy(w, r, query, e.cfg.Version.AppendJSON(nil))
}

// root answers / with the web page, or with nothing: clients that follow /redirect end here.
func (m *masterEdge) root(w http.ResponseWriter, r *http.Request, principal string) error {
	if m.ui == nil {
		return emptyOK(w, r, principal)
	}
	m.ui.ServeHTTP(w, r)
	return nil
}

func emptyOK(w http.ResponseWriter, _ *http.Request, _ string) error {
	writeEmpty(w, http.StatusOK)
	return nil
}

// prometheus serves the registry that the configuration gave.
func (e *edge) prometheus() func(http.ResponseWriter, *http.Request, string) error {
	h := promhttp.HandlerFor(e.cfg.Metrics, promhttp.HandlerOpts{})
	return func(w http.ResponseWriter, r *http.Request, _ string) error {
		h.ServeHTTP(w, r)
		return nil
	}
}
