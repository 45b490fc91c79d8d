package main

import (
	"os"
	"testing"

	"github.com/mosaic-cluster/mosaic/sdk/kit"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	provider "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1/resource_provider"
	resourceproviderv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/resourceprovider/v1"
)

// TestMain lets the test's own executable be the module when the kit starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv("MOSAIC_MODULE") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestConformance(t *testing.T) {
	kit.Conform(t, kit.Program{Path: os.Args[0]}.Dial, kit.Core)
}

func TestItSubscribesAndTellsWhatThereIs(t *testing.T) {
	conn, stop, err := kit.InProcess(newModule)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	s, err := resourceproviderv1.NewResourceProviderClient(conn).Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if call, err := s.Recv(); err != nil || call.GetType() != provider.Call_SUBSCRIBE {
		t.Fatalf("the first call = %v, %v; want SUBSCRIBE", call, err)
	}
	id := "provider-1"
	event := &provider.Event{Type: provider.Event_SUBSCRIBED.Enum(), Subscribed: &provider.Event_Subscribed{ProviderId: &mesosv1.ResourceProviderID{Value: &id}}}
	if err := s.Send(event); err != nil {
		t.Fatal(err)
	}
	call, err := s.Recv()
	if err != nil || call.GetResourceProviderId().GetValue() != id || len(call.GetUpdateState().GetResources()) != 1 {
		t.Fatalf("after SUBSCRIBED came %v, %v; want UPDATE_STATE with its resources", call, err)
	}
	publish := &provider.Event{Type: provider.Event_PUBLISH_RESOURCES.Enum(), PublishResources: &provider.Event_PublishResources{Uuid: &mesosv1.UUID{Value: []byte("0123456789abcdef")}}}
	if err := s.Send(publish); err != nil {
		t.Fatal(err)
	}
	call, err = s.Recv()
	if err != nil || call.GetUpdatePublishResourcesStatus().GetStatus() != provider.Call_UpdatePublishResourcesStatus_OK {
		t.Errorf("after PUBLISH_RESOURCES came %v, %v; want that it went well", call, err)
	}
}
