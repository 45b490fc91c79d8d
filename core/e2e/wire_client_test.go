package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/agent"
	executorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/executor"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// The tests named TestWire... speak each of Mesos's four APIs from outside, once in JSON and once in protobuf. What they
// send is written as JSON text; for protobuf it goes through the standard runtime, not through the encoders under test.
// What they sent and got is kept, and makes docs/compatibility.md.

// wireAPI is one of the APIs.
type wireAPI struct {
	name, path      string
	call, out, item func() proto.Message // a call, its answer, and one record of a stream
}

var (
	schedulerAPI = &wireAPI{
		name: "scheduler", path: "/api/v1/scheduler",
		call: func() proto.Message { return new(schedulerv1.Call) },
		out:  func() proto.Message { return new(schedulerv1.Response) },
		item: func() proto.Message { return new(schedulerv1.Event) },
	}
	executorAPI = &wireAPI{
		name: "executor", path: "/api/v1/executor",
		call: func() proto.Message { return new(executorv1.Call) },
		item: func() proto.Message { return new(executorv1.Event) },
	}
	masterAPI = &wireAPI{
		name: "master", path: "/api/v1",
		call: func() proto.Message { return new(masterv1.Call) },
		out:  func() proto.Message { return new(masterv1.Response) },
		item: func() proto.Message { return new(masterv1.Event) },
	}
	agentAPI = &wireAPI{
		name: "agent", path: "/api/v1",
		call: func() proto.Message { return new(agentv1.Call) },
		out:  func() proto.Message { return new(agentv1.Response) },
		item: func() proto.Message { return new(agentv1.ProcessIO) },
	}
)

const (
	mediaJSON     = "application/json"
	mediaProtobuf = "application/x-protobuf"
)

// inBothMedia runs a test once for each encoding, each with a deadline of its own.
func inBothMedia(t *testing.T, within time.Duration, f func(ctx context.Context, t *testing.T, media string)) {
	for name, media := range map[string]string{"json": mediaJSON, "protobuf": mediaProtobuf} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), within)
			defer cancel()
			f(ctx, t, media)
		})
	}
}

// peer is a client of one API of one daemon, in one encoding.
type peer struct {
	t         *testing.T
	ctx       context.Context
	api       *wireAPI
	addr      string
	media     string
	stream    string // Mesos-Stream-Id, once subscribed
	framework any
	executor  any
	events    chan object
	body      io.Closer
	quiet     bool     // what is sent now is no test's subject
	keeps     bool     // updates are not acknowledged
	statuses  []object // all statuses that came with an UPDATE
}

func newPeer(ctx context.Context, t *testing.T, api *wireAPI, addr, media string) *peer {
	return &peer{t: t, ctx: ctx, api: api, addr: addr, media: media}
}

// encode turns a call written as JSON into what goes over the wire.
func (p *peer) encode(call object) []byte {
	p.t.Helper()
	text, err := json.Marshal(call)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.media == mediaJSON {
		return text
	}
	m := p.api.call()
	if err := (protojson.UnmarshalOptions{AllowPartial: true}).Unmarshal(text, m); err != nil {
		p.t.Fatalf("%s: %v", text, err)
	}
	data, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	return data
}

// decode turns what came over the wire into JSON as a script sees it.
func (p *peer) decode(data []byte, into func() proto.Message) (object, error) {
	if p.media == mediaProtobuf {
		m := into()
		if err := proto.Unmarshal(data, m); err != nil {
			return nil, err
		}
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			return nil, err
		}
		data = text
	}
	var o object
	err := json.Unmarshal(data, &o)
	return o, err
}

// answer is what a call was answered with.
type answer struct {
	status int
	header http.Header
	text   string // the body as it came
	object        // the body decoded, when there is a message in it
}

// try sends a call and returns the answer, whatever it is: nothing is shown by that. It is not for calls that are answered
// with a stream.
func (p *peer) try(call object) answer {
	p.t.Helper()
	if p.framework != nil && call["framework_id"] == nil && (p.api == schedulerAPI || p.api == executorAPI) {
		call["framework_id"] = p.framework
	}
	if p.executor != nil && call["executor_id"] == nil {
		call["executor_id"] = p.executor
	}
	resp, err := post(p.ctx, p.addr, p.api.path, p.media, p.stream, p.encode(call))
	if err != nil {
		p.t.Fatalf("%v: %v", call["type"], err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatalf("%v: read the answer: %v", call["type"], err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, text: string(body)}
	if resp.StatusCode == http.StatusOK && len(body) > 0 {
		if got := resp.Header.Get("Content-Type"); got != p.media {
			p.t.Errorf("%v: Content-Type %q, want %q", call["type"], got, p.media)
		}
		if a.object, err = p.decode(body, p.api.out); err != nil {
			p.t.Fatalf("%v: answer %q: %v", call["type"], body, err)
		}
	}
	return a
}

// call sends a call that must be answered with the given code.
func (p *peer) call(status int, call object) answer {
	p.t.Helper()
	a := p.try(call)
	if !p.quiet {
		observe(p.t, p.api.name, "call", fmt.Sprint(call["type"]), p.media, a.status)
	}
	if a.status != status {
		p.t.Fatalf("%v answered %d %s, want %d\ncall: %v", call["type"], a.status, a.text, status, call)
	}
	if status == http.StatusAccepted && (a.header.Get("Content-Length") != "0" || a.header.Get("Content-Type") != "") {
		p.t.Errorf("%v: answer of length %q and type %q, want an empty one without type", call["type"], a.header.Get("Content-Length"), a.header.Get("Content-Type"))
	}
	return a
}

// open sends a call that is answered with a stream.
func (p *peer) open(call object) {
	p.t.Helper()
	if p.executor != nil {
		call["executor_id"], call["framework_id"] = p.executor, p.framework
	}
	resp, err := post(p.ctx, p.addr, p.api.path, p.media, "", p.encode(call))
	if err != nil {
		p.t.Fatalf("%v: %v", call["type"], err)
	}
	p.t.Cleanup(func() { resp.Body.Close() })
	observe(p.t, p.api.name, "call", fmt.Sprint(call["type"]), p.media, resp.StatusCode)
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		p.t.Fatalf("%v answered %d %s, want 200", call["type"], resp.StatusCode, text)
	}
	if got := resp.Header.Get("Content-Type"); got != p.media {
		p.t.Errorf("%v: Content-Type %q, want %q", call["type"], got, p.media)
	}
	if got := strings.Join(resp.TransferEncoding, ","); got != "chunked" {
		p.t.Errorf("%v: Transfer-Encoding %q, want chunked", call["type"], got)
	}
	p.stream, p.body = resp.Header.Get("Mesos-Stream-Id"), resp.Body
	events := make(chan object, 65536)
	p.events = events
	t, ctx := p.t, p.ctx
	go func() {
		defer close(events)
		r := bufio.NewReader(resp.Body)
		for {
			record, err := readRecord(r)
			if err != nil {
				return
			}
			event, err := p.decode(record, p.api.item)
			if err != nil {
				if ctx.Err() == nil {
					t.Errorf("event %q: %v", record, err)
				}
				return
			}
			select {
			case events <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
}

// await returns the next event of a type that ok takes. Offers that come meanwhile and are not awaited are declined,
// and updates acknowledged.
func (p *peer) await(kind string, ok func(object) bool) object {
	p.t.Helper()
	for {
		select {
		case e, open := <-p.events:
			if !open {
				p.t.Fatalf("the stream ended while waiting for %s", kind)
			}
			p.react(e, kind == e["type"])
			if e["type"] == kind && (ok == nil || ok(e)) {
				observe(p.t, p.api.name, "event", kind, p.media, 0)
				return e
			}
			if e["type"] == "OFFERS" && kind == "OFFERS" {
				p.decline(e)
			}
			if e["type"] == "ERROR" {
				p.t.Fatalf("error event: %v", e)
			}
		case <-p.ctx.Done():
			p.t.Fatalf("no %s: %v", kind, p.ctx.Err())
		}
	}
}

// react does what every scheduler does: acknowledges updates, and gives back what it has no use for.
func (p *peer) react(e object, awaited bool) {
	p.t.Helper()
	if p.api != schedulerAPI {
		return
	}
	p.quiet = true
	defer func() { p.quiet = false }()
	if e["type"] == "UPDATE" {
		p.statuses = append(p.statuses, dig(e, "update", "status").(object))
	}
	switch status := dig(e, "update", "status"); {
	case e["type"] == "OFFERS" && !awaited:
		p.decline(e)
	case e["type"] == "UPDATE" && dig(status, "uuid") != nil && !p.keeps:
		p.call(http.StatusAccepted, object{"type": "ACKNOWLEDGE", "acknowledge": object{
			"agent_id": dig(status, "agent_id"), "task_id": dig(status, "task_id"), "uuid": dig(status, "uuid"),
		}})
	}
}

func (p *peer) decline(offers object) {
	p.t.Helper()
	p.quiet = true
	defer func() { p.quiet = false }()
	var ids []any
	list, _ := dig(offers, "offers", "offers").([]any)
	for _, o := range list {
		ids = append(ids, dig(o, "id"))
	}
	p.call(http.StatusAccepted, object{"type": "DECLINE", "decline": object{"offer_ids": ids, "filters": object{"refuse_seconds": 0.1}}})
}

// ended waits for the end of the stream.
func (p *peer) ended() {
	p.t.Helper()
	for {
		select {
		case _, open := <-p.events:
			if !open {
				return
			}
		case <-p.ctx.Done():
			p.t.Fatal("the stream does not end")
		}
	}
}

// subscribe subscribes a framework of one role with all the capabilities that a framework of today has.
func subscribe(ctx context.Context, t *testing.T, master, media, role string, change func(info object)) *peer {
	t.Helper()
	p := newPeer(ctx, t, schedulerAPI, master, media)
	info := object{
		"user": "root", "name": "wire", "roles": []any{role}, "checkpoint": true, "failover_timeout": 60, "capabilities": []any{
			object{"type": "PARTITION_AWARE"}, object{"type": "MULTI_ROLE"}, object{"type": "RESERVATION_REFINEMENT"}, object{"type": "TASK_KILLING_STATE"},
		},
	}
	if change != nil {
		change(info)
	}
	p.open(object{"type": "SUBSCRIBE", "subscribe": object{"framework_info": info}})
	if p.stream == "" {
		t.Fatal("SUBSCRIBE answered without Mesos-Stream-Id")
	}
	p.framework = dig(p.await("SUBSCRIBED", nil), "subscribed", "framework_id")
	return p
}

// offer awaits an offer with at least so much.
func (p *peer) offer(cpus float64, ok func(offer object) bool) object {
	p.t.Helper()
	e := p.await("OFFERS", func(e object) bool {
		o, _ := dig(e, "offers", "offers", "0").(object)
		return amount(o, "cpus") >= cpus && (ok == nil || ok(o))
	})
	list := dig(e, "offers", "offers").([]any)
	p.quiet = true
	defer func() { p.quiet = false }()
	for _, extra := range list[1:] {
		p.call(http.StatusAccepted, object{"type": "DECLINE", "decline": object{"offer_ids": []any{dig(extra, "id")}}})
	}
	return list[0].(object)
}

// amount adds up a scalar resource of an offer.
func amount(offer object, name string) float64 {
	var sum float64
	list, _ := offer["resources"].([]any)
	for _, r := range list {
		if dig(r, "name") == name {
			v, _ := dig(r, "scalar", "value").(float64)
			sum += v
		}
	}
	return sum
}

// scalarOf is an unreserved resource as a task asks for it.
func scalarOf(name string, v float64) object {
	return object{"name": name, "type": "SCALAR", "scalar": object{"value": v}}
}

// reservedOf is the same, reserved for a role by this framework.
func reservedOf(name string, v float64, role string) object {
	r := scalarOf(name, v)
	r["reservations"] = []any{object{"type": "DYNAMIC", "role": role}}
	return r
}

// taskOf is a small task.
func taskOf(offer object, id, command string) object {
	return object{
		"name": id, "task_id": object{"value": id}, "agent_id": offer["agent_id"], "command": object{"value": command},
		"resources": []any{scalarOf("cpus", 0.1), scalarOf("mem", 32)},
	}
}

// accept takes an offer with operations.
func (p *peer) accept(offer object, operations ...object) {
	p.t.Helper()
	list := []any{}
	for _, o := range operations {
		list = append(list, o)
	}
	p.call(http.StatusAccepted, object{"type": "ACCEPT", "accept": object{
		"offer_ids": []any{offer["id"]}, "operations": list, "filters": object{"refuse_seconds": 0},
	}})
}

func launchOf(tasks ...object) object {
	list := []any{}
	for _, t := range tasks {
		list = append(list, t)
	}
	return object{"type": "LAUNCH", "launch": object{"task_infos": list}}
}

// state awaits an update that says a task is in a state. One that has come already will do.
func (p *peer) state(task, state string) object {
	p.t.Helper()
	for n := 0; ; n++ {
		for n >= len(p.statuses) {
			p.await("UPDATE", nil)
		}
		s := p.statuses[n]
		if dig(s, "task_id", "value") != task {
			continue
		}
		switch got := s["state"]; got {
		case state:
			return s
		case "TASK_STARTING", "TASK_RUNNING", "TASK_KILLING":
		default:
			p.t.Fatalf("task %s is %v (%v %v), want %s; all: %v", task, got, s["reason"], s["message"], state, p.statuses)
		}
	}
}
