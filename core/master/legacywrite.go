package master

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/mesosjson"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	maintenancev1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/maintenance"
	masterv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/master"
	quotav1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/quota"
)

// LegacyWrite carries out a request to one of Mesos's older endpoints that change something. Each is a call of the
// operator API in other words. form is the decoded body of the endpoints that take one, body the JSON of the others.
//
// Errors: a Refusal with 400 for what cannot be read or is wrong, 403, 409, or 404 for an endpoint that there is not.
func (m *Master) LegacyWrite(ctx context.Context, principal, endpoint, method string, query, form url.Values, body []byte) ([]byte, error) {
	call, err := legacyCall(endpoint, method, query, form, body)
	if err != nil {
		return nil, err
	}
	_, err = m.OperatorCall(ctx, principal, call)
	return nil, err
}

// legacyCall is the call of the operator API that a request asks for.
func legacyCall(endpoint, method string, query, form url.Values, body []byte) (*masterv1.Call, error) {
	switch {
	case endpoint == "/quota" && method == http.MethodPost:
		request := new(quotav1.QuotaRequest)
		if err := mesosjson.Unmarshal(body, request); err != nil {
			return nil, badRequest("Failed to parse set quota request JSON: %v", err)
		}
		return &masterv1.Call{Type: masterv1.Call_SET_QUOTA.Enum(), SetQuota: &masterv1.Call_SetQuota{QuotaRequest: request}}, nil
	case (endpoint == "/quota" || strings.HasPrefix(endpoint, "/quota/")) && method == http.MethodDelete:
		role := strings.TrimPrefix(strings.TrimPrefix(endpoint, "/quota"), "/")
		if role == "" {
			role = query.Get("role")
		}
		return &masterv1.Call{Type: masterv1.Call_REMOVE_QUOTA.Enum(), RemoveQuota: &masterv1.Call_RemoveQuota{Role: &role}}, nil
	}
	switch endpoint {
	case "/weights":
		update := new(masterv1.Call_UpdateWeights)
		if err := unmarshalList(body, "weight_infos", update); err != nil {
			return nil, badRequest("Failed to parse update weights request JSON: %v", err)
		}
		return &masterv1.Call{Type: masterv1.Call_UPDATE_WEIGHTS.Enum(), UpdateWeights: update}, nil
	case "/maintenance/schedule":
		schedule := new(maintenancev1.Schedule)
		if err := mesosjson.Unmarshal(body, schedule); err != nil {
			return nil, badRequest("Failed to parse maintenance schedule JSON: %v", err)
		}
		return &masterv1.Call{Type: masterv1.Call_UPDATE_MAINTENANCE_SCHEDULE.Enum(),
			UpdateMaintenanceSchedule: &masterv1.Call_UpdateMaintenanceSchedule{Schedule: schedule}}, nil
	case "/machine/down":
		start := new(masterv1.Call_StartMaintenance)
		if err := unmarshalList(body, "machines", start); err != nil {
			return nil, badRequest("Failed to parse machines JSON: %v", err)
		}
		return &masterv1.Call{Type: masterv1.Call_START_MAINTENANCE.Enum(), StartMaintenance: start}, nil
	case "/machine/up":
		stop := new(masterv1.Call_StopMaintenance)
		if err := unmarshalList(body, "machines", stop); err != nil {
			return nil, badRequest("Failed to parse machines JSON: %v", err)
		}
		return &masterv1.Call{Type: masterv1.Call_STOP_MAINTENANCE.Enum(), StopMaintenance: stop}, nil
	case "/reserve", "/unreserve":
		id, rs, err := agentForm(form, "resources")
		if err != nil {
			return nil, err
		}
		if endpoint == "/reserve" {
			return &masterv1.Call{Type: masterv1.Call_RESERVE_RESOURCES.Enum(),
				ReserveResources: &masterv1.Call_ReserveResources{AgentId: id, Resources: rs}}, nil
		}
		return &masterv1.Call{Type: masterv1.Call_UNRESERVE_RESOURCES.Enum(),
			UnreserveResources: &masterv1.Call_UnreserveResources{AgentId: id, Resources: rs}}, nil
	case "/create-volumes", "/destroy-volumes":
		id, vs, err := agentForm(form, "volumes")
		if err != nil {
			return nil, err
		}
		if endpoint == "/create-volumes" {
			return &masterv1.Call{Type: masterv1.Call_CREATE_VOLUMES.Enum(),
				CreateVolumes: &masterv1.Call_CreateVolumes{AgentId: id, Volumes: vs}}, nil
		}
		return &masterv1.Call{Type: masterv1.Call_DESTROY_VOLUMES.Enum(),
			DestroyVolumes: &masterv1.Call_DestroyVolumes{AgentId: id, Volumes: vs}}, nil
	case "/teardown":
		id := form.Get("frameworkId")
		if id == "" {
			return nil, badRequest("Missing 'frameworkId' query parameter in the request body")
		}
		return &masterv1.Call{Type: masterv1.Call_TEARDOWN.Enum(),
			Teardown: &masterv1.Call_Teardown{FrameworkId: &mesosv1.FrameworkID{Value: &id}}}, nil
	}
	return nil, &Refusal{Status: http.StatusNotFound, Text: fmt.Sprintf("There is no endpoint %s to write to", endpoint)}
}

// agentForm reads the form of the endpoints that are about resources of an agent.
func agentForm(form url.Values, name string) (*mesosv1.AgentID, []*mesosv1.Resource, error) {
	id := form.Get("slaveId")
	if id == "" {
		return nil, nil, badRequest("Missing 'slaveId' query parameter in the request body")
	}
	text := form.Get(name)
	if text == "" {
		return nil, nil, badRequest("Missing '%s' query parameter in the request body", name)
	}
	list := new(masterv1.Call_CreateVolumes) // any message with a list of resources
	if err := unmarshalResources([]byte(text), list); err != nil {
		return nil, nil, badRequest("Error in parsing '%s' query parameter in the request body: %v", name, err)
	}
	return &mesosv1.AgentID{Value: &id}, list.Volumes, nil
}

func unmarshalResources(text []byte, into *masterv1.Call_CreateVolumes) error {
	placeholder := `"agent_id":{"value":"x"},"volumes"`
	return unmarshalMember(text, placeholder, into)
}

// unmarshalList reads a JSON list as one member of a message.
func unmarshalList(list []byte, member string, into proto.Message) error {
	return unmarshalMember(list, `"`+member+`"`, into)
}

// unmarshalMember reads a message from its members, the last one of which is the list. A text that is more than a list
// is none.
func unmarshalMember(list []byte, before string, into proto.Message) error {
	list = bytes.TrimSpace(list)
	if len(list) == 0 || list[0] != '[' {
		return fmt.Errorf("want a list")
	}
	if !json.Valid(list) {
		return fmt.Errorf("not valid JSON")
	}
	text := make([]byte, 0, len(list)+len(before)+3)
	text = append(text, '{')
	text = append(text, before...)
	text = append(text, ':')
	text = append(text, list...)
	return mesosjson.Unmarshal(append(text, '}'), into)
}
