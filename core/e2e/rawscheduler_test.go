package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/core/e2e/cluster"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	schedulerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/scheduler"
)

// readRecord reads one RecordIO record with nothing of ours.
func readRecord(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(line, "\n"))
	if err != nil {
		return nil, err
	}
	record := make([]byte, n)
	_, err = io.ReadFull(r, record)
	return record, err
}

// post sends one call and returns the answer with its body still to read.
func post(ctx context.Context, addr, path, media, stream string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", media)
	req.Header.Set("Accept", media)
	if stream != "" {
		req.Header.Set("Mesos-Stream-Id", stream)
	}
	return http.DefaultClient.Do(req)
}

// object is JSON as a script sees it.
type object = map[string]any

// dig follows keys into JSON.
func dig(v any, path ...string) any {
	for _, p := range path {
		switch t := v.(type) {
		case object:
			v = t[p]
		case []any:
			i, err := strconv.Atoi(p)
			if err != nil || i >= len(t) {
				return nil
			}
			v = t[i]
		default:
			return nil
		}
	}
	return v
}

// runJSONTask is a scheduler made of net/http and encoding/json: it runs one command and returns the states it saw.
func runJSONTask(ctx context.Context, master, name, command string) ([]string, error) {
	call := func(stream string, body object) error {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		resp, err := post(ctx, master, "/api/v1/scheduler", "application/json", stream, data)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusAccepted {
			return fmt.Errorf("%v answered %d %s, want 202", body["type"], resp.StatusCode, text)
		}
		if resp.Header.Get("Content-Length") != "0" {
			return fmt.Errorf("%v: Content-Length %q, want 0", body["type"], resp.Header.Get("Content-Length"))
		}
		return nil
	}
	subscribe, err := json.Marshal(object{"type": "SUBSCRIBE", "subscribe": object{"framework_info": object{
		"user": "root", "name": name, "capabilities": []any{object{"type": "PARTITION_AWARE"}},
	}}})
	if err != nil {
		return nil, err
	}
	resp, err := post(ctx, master, "/api/v1/scheduler", "application/json", "", subscribe)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Mesos-Stream-Id") == "" {
		return nil, fmt.Errorf("SUBSCRIBE answered %d with %v", resp.StatusCode, resp.Header)
	}
	stream := resp.Header.Get("Mesos-Stream-Id")
	r := bufio.NewReader(resp.Body)
	var framework any
	var states []string
	launched := false
	for {
		record, err := readRecord(r)
		if err != nil {
			return states, fmt.Errorf("read events: %w", err)
		}
		if bytes.ContainsRune(record, '\n') {
			return states, fmt.Errorf("a record has a line feed: %q", record)
		}
		var event object
		if err := json.Unmarshal(record, &event); err != nil {
			return states, fmt.Errorf("event %q: %w", record, err)
		}
		switch event["type"] {
		case "SUBSCRIBED":
			framework = dig(event, "subscribed", "framework_id")
		case "OFFERS":
			offer := dig(event, "offers", "offers", "0")
			if launched {
				if err := call(stream, object{"framework_id": framework, "type": "DECLINE", "decline": object{"offer_ids": []any{dig(offer, "id")}}}); err != nil {
					return states, err
				}
				continue
			}
			launched = true
			// A lone object where a list belongs, and a number as a string: Mesos takes both.
			err := call(stream, object{"framework_id": framework, "type": "ACCEPT", "accept": object{
				"offer_ids": []any{dig(offer, "id")},
				"operations": []any{object{"type": "LAUNCH", "launch": object{"task_infos": object{
					"name": name, "task_id": object{"value": name}, "agent_id": dig(offer, "agent_id"),
					"command": object{"value": command},
					"resources": []any{
						object{"name": "cpus", "type": "SCALAR", "scalar": object{"value": "0.1"}},
						object{"name": "mem", "type": "SCALAR", "scalar": object{"value": 32}},
					},
				}}}},
				"filters": object{"refuse_seconds": 0, "no_such_field": true},
			}})
			if err != nil {
				return states, err
			}
		case "UPDATE":
			status := dig(event, "update", "status")
			state, _ := dig(status, "state").(string)
			states = append(states, state)
			if dig(status, "container_status", "container_id", "value") == nil {
				return states, fmt.Errorf("update %s has no container id: %s", state, record)
			}
			if uuid, ok := dig(status, "uuid").(string); ok {
				if raw, err := base64.StdEncoding.DecodeString(uuid); err != nil || len(raw) != 16 {
					return states, fmt.Errorf("uuid %q is not 16 bytes in base64", uuid)
				}
				err := call(stream, object{"framework_id": framework, "type": "ACKNOWLEDGE", "acknowledge": object{
					"agent_id": dig(status, "agent_id"), "task_id": dig(status, "task_id"), "uuid": uuid,
				}})
				if err != nil {
					return states, err
				}
			}
			if state == "TASK_FINISHED" || state == "TASK_FAILED" || state == "TASK_ERROR" || state == "TASK_DROPPED" {
				if err := call(stream, object{"framework_id": framework, "type": "TEARDOWN"}); err != nil {
					return states, err
				}
				if state != "TASK_FINISHED" {
					return states, fmt.Errorf("ended as %s: %s", state, record)
				}
				return states, nil
			}
		case "ERROR":
			return states, fmt.Errorf("error event: %s", record)
		}
	}
}

// runProtobufTask does the same in protobuf, with net/http and the standard protobuf runtime.
func runProtobufTask(ctx context.Context, master, name, command string) ([]string, error) {
	const media = "application/x-protobuf"
	call := func(stream string, c *schedulerv1.Call) error {
		data, err := proto.Marshal(c)
		if err != nil {
			return err
		}
		resp, err := post(ctx, master, "/api/v1/scheduler", media, stream, data)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusAccepted {
			return fmt.Errorf("%s answered %d %s, want 202", c.GetType(), resp.StatusCode, text)
		}
		return nil
	}
	subscribe, err := proto.Marshal(&schedulerv1.Call{
		Type: schedulerv1.Call_SUBSCRIBE.Enum(),
		Subscribe: &schedulerv1.Call_Subscribe{FrameworkInfo: &mesosv1.FrameworkInfo{
			User: proto.String("root"), Name: proto.String(name),
		}},
	})
	if err != nil {
		return nil, err
	}
	resp, err := post(ctx, master, "/api/v1/scheduler", media, "", subscribe)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != media {
		return nil, fmt.Errorf("SUBSCRIBE answered %d with %v", resp.StatusCode, resp.Header)
	}
	stream := resp.Header.Get("Mesos-Stream-Id")
	r := bufio.NewReader(resp.Body)
	var framework *mesosv1.FrameworkID
	var states []string
	launched := false
	for {
		record, err := readRecord(r)
		if err != nil {
			return states, fmt.Errorf("read events: %w", err)
		}
		event := &schedulerv1.Event{}
		if err := proto.Unmarshal(record, event); err != nil {
			return states, err
		}
		switch event.GetType() {
		case schedulerv1.Event_SUBSCRIBED:
			framework = event.GetSubscribed().GetFrameworkId()
		case schedulerv1.Event_OFFERS:
			offer := event.GetOffers().GetOffers()[0]
			if launched {
				err := call(stream, &schedulerv1.Call{FrameworkId: framework, Type: schedulerv1.Call_DECLINE.Enum(),
					Decline: &schedulerv1.Call_Decline{OfferIds: []*mesosv1.OfferID{offer.GetId()}}})
				if err != nil {
					return states, err
				}
				continue
			}
			launched = true
			err := call(stream, &schedulerv1.Call{FrameworkId: framework, Type: schedulerv1.Call_ACCEPT.Enum(),
				Accept: &schedulerv1.Call_Accept{OfferIds: []*mesosv1.OfferID{offer.GetId()},
					Operations: []*mesosv1.Offer_Operation{{Type: mesosv1.Offer_Operation_LAUNCH.Enum(),
						Launch: &mesosv1.Offer_Operation_Launch{TaskInfos: []*mesosv1.TaskInfo{{
							Name: &name, TaskId: &mesosv1.TaskID{Value: &name}, AgentId: offer.GetAgentId(),
							Command: &mesosv1.CommandInfo{Value: &command},
							Resources: []*mesosv1.Resource{
								{Name: proto.String("cpus"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(0.1)}},
								{Name: proto.String("mem"), Type: mesosv1.Value_SCALAR.Enum(), Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(32)}},
							},
						}}},
					}},
				}})
			if err != nil {
				return states, err
			}
		case schedulerv1.Event_UPDATE:
			s := event.GetUpdate().GetStatus()
			states = append(states, s.GetState().String())
			if len(s.GetUuid()) > 0 {
				err := call(stream, &schedulerv1.Call{FrameworkId: framework, Type: schedulerv1.Call_ACKNOWLEDGE.Enum(),
					Acknowledge: &schedulerv1.Call_Acknowledge{AgentId: s.GetAgentId(), TaskId: s.GetTaskId(), Uuid: s.GetUuid()}})
				if err != nil {
					return states, err
				}
			}
			switch s.GetState() {
			case mesosv1.TaskState_TASK_FINISHED:
				return states, call(stream, &schedulerv1.Call{FrameworkId: framework, Type: schedulerv1.Call_TEARDOWN.Enum()})
			case mesosv1.TaskState_TASK_FAILED, mesosv1.TaskState_TASK_ERROR, mesosv1.TaskState_TASK_LOST:
				return states, fmt.Errorf("ended as %s: %s", s.GetState(), s.GetMessage())
			}
		case schedulerv1.Event_ERROR:
			return states, fmt.Errorf("error event: %s", event.GetError().GetMessage())
		}
	}
}

func TestSchedulersOfNothingButAnHTTPLibraryRunAtOnceToFinished(t *testing.T) {
	c := start(t, cluster.Options{Dev: true})
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	type result struct {
		media  string
		states []string
		err    error
	}
	results := make(chan result, 2)
	go func() {
		s, err := runJSONTask(ctx, c.Master, "json-task", "echo json")
		results <- result{"JSON", s, err}
	}()
	go func() {
		s, err := runProtobufTask(ctx, c.Master, "protobuf-task", "echo protobuf")
		results <- result{"protobuf", s, err}
	}()
	for range 2 {
		r := <-results
		if r.err != nil {
			t.Errorf("%s scheduler: states %v: %v", r.media, r.states, r.err)
			continue
		}
		if got := strings.Join(r.states, " "); !strings.HasSuffix(got, "TASK_RUNNING TASK_FINISHED") {
			t.Errorf("%s scheduler saw %s, want ... TASK_RUNNING TASK_FINISHED", r.media, got)
		}
	}
}
