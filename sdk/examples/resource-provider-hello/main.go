// Command resource-provider-hello is the smallest resource provider that provides something: a number of licences, a
// resource that frameworks are offered beside cpus and mem.
package main

import (
	"crypto/rand"
	"errors"
	"io"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/sdk/module"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	provider "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/resource_provider"
	resourceproviderv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceprovider/v1"
)

func main() { module.Serve(newModule()) }

// config is what an operator may set in the module's config block.
type config struct {
	Licences float64 `hcl:"licences,optional" doc:"How many there are on this agent." min:"0"`
}

type licences struct {
	resourceproviderv1.UnimplementedResourceProviderServer
	config *module.Config[config]

	mu sync.Mutex                  // guards id
	id *mesosv1.ResourceProviderID // given by the agent at the first subscription
}

func newModule() *licences {
	return &licences{config: module.NewConfig(config{Licences: 10}, nil)}
}

// Info is what the host knows of the module before it runs.
func (l *licences) Info() module.Info {
	return module.Info{Kind: "resource_provider", Name: "hello", Version: "1.0.0", Doc: "provides licences", Config: l.config}
}

// Connect speaks Mesos's resource provider API: calls go out, events come in.
func (l *licences) Connect(s resourceproviderv1.ResourceProvider_ConnectServer) error {
	l.mu.Lock()
	info := &mesosv1.ResourceProviderInfo{Id: l.id, Type: proto.String("org.example.licences"), Name: proto.String("hello")}
	l.mu.Unlock()
	call := &provider.Call{Type: provider.Call_SUBSCRIBE.Enum(), Subscribe: &provider.Call_Subscribe{ResourceProviderInfo: info}}
	for {
		if call != nil {
			if err := s.Send(call); err != nil {
				return err
			}
		}
		event, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		call = l.answer(event)
	}
}

// answer is what an event asks for; nil if nothing.
func (l *licences) answer(event *provider.Event) *provider.Call {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch event.GetType() {
	case provider.Event_SUBSCRIBED:
		l.id = event.GetSubscribed().GetProviderId()
		version := make([]byte, 16)
		_, _ = rand.Read(version) // never fails
		return &provider.Call{ResourceProviderId: l.id, Type: provider.Call_UPDATE_STATE.Enum(), UpdateState: &provider.Call_UpdateState{
			ResourceVersionUuid: &mesosv1.UUID{Value: version},
			Resources: []*mesosv1.Resource{{
				ProviderId: l.id, Name: proto.String("licences"), Type: mesosv1.Value_SCALAR.Enum(),
				Scalar: &mesosv1.Value_Scalar{Value: proto.Float64(l.config.Get().Licences)},
			}},
		}}
	case provider.Event_PUBLISH_RESOURCES: // a licence needs nothing done to be used
		return &provider.Call{
			ResourceProviderId: l.id, Type: provider.Call_UPDATE_PUBLISH_RESOURCES_STATUS.Enum(),
			UpdatePublishResourcesStatus: &provider.Call_UpdatePublishResourcesStatus{
				Uuid: event.GetPublishResources().GetUuid(), Status: provider.Call_UpdatePublishResourcesStatus_OK.Enum(),
			},
		}
	}
	return nil
}
