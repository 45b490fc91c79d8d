package rlimits_test

import (
	"context"
	"math"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mosaic-cluster/mosaic/isolators/rlimits"
	"github.com/mosaic-cluster/mosaic/sdk/moduletest"
	mesosv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mesos/v1"
	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
	isolatorv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/isolator/v1"
)

func limit(t mesosv1.RLimitInfo_RLimit_Type, soft, hard *uint64) *mesosv1.RLimitInfo_RLimit {
	return &mesosv1.RLimitInfo_RLimit{Type: t.Enum(), Soft: soft, Hard: hard}
}

func prepare(c *moduletest.Client, limits ...*mesosv1.RLimitInfo_RLimit) (*isolatorv1.PrepareResponse, error) {
	return c.Isolator.Prepare(context.Background(), &isolatorv1.PrepareRequest{
		OperationId: "op", Container: &containerv1.Container{
			Id: "c", ContainerInfo: &mesosv1.ContainerInfo{Type: mesosv1.ContainerInfo_MESOS.Enum(), RlimitInfo: &mesosv1.RLimitInfo{Rlimits: limits}},
		},
	})
}

func TestATasksLimitsGoBeforeTheOperatorsDefaults(t *testing.T) {
	c := moduletest.Start(t, rlimits.New(), `{"limit":[{"type":"nofile","soft":10,"hard":20},{"type":"core","soft":0,"hard":-1}]}`)
	r, err := prepare(c, limit(mesosv1.RLimitInfo_RLimit_RLMT_NOFILE, proto.Uint64(100), proto.Uint64(200)),
		limit(mesosv1.RLimitInfo_RLimit_RLMT_NPROC, nil, nil))
	if err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	want := []*containerv1.Rlimit{
		{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200},
		{Type: "RLIMIT_NPROC", Soft: math.MaxUint64, Hard: math.MaxUint64},
		{Type: "RLIMIT_CORE", Soft: 0, Hard: math.MaxUint64},
	}
	got := r.GetProposal().GetRlimits()
	if len(got) != len(want) {
		t.Fatalf("Prepare proposed %v, want %v", got, want)
	}
	for i := range want {
		if !proto.Equal(got[i], want[i]) {
			t.Errorf("limit %d: got %v, want %v", i, got[i], want[i])
		}
	}
}

func TestNothingAskedIsNothingProposed(t *testing.T) {
	c := moduletest.Start(t, rlimits.New(), `{}`)
	r, err := prepare(c)
	if err != nil || r.GetProposal() != nil {
		t.Errorf("Prepare = %v, %v; want no proposal", r, err)
	}
}

func TestWrongLimitsAreRefused(t *testing.T) {
	c := moduletest.Start(t, rlimits.New(), `{}`)
	nofile := mesosv1.RLimitInfo_RLimit_RLMT_NOFILE
	for name, limits := range map[string][]*mesosv1.RLimitInfo_RLimit{
		"soft above hard": {limit(nofile, proto.Uint64(2), proto.Uint64(1))},
		"only soft":       {limit(nofile, proto.Uint64(2), nil)},
		"twice":           {limit(nofile, nil, nil), limit(nofile, nil, nil)},
		"unknown":         {limit(mesosv1.RLimitInfo_RLimit_UNKNOWN, nil, nil)},
	} {
		if _, err := prepare(c, limits...); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: Prepare = %v, want InvalidArgument", name, err)
		}
	}
}

func TestWrongConfigurationIsToldByAttribute(t *testing.T) {
	for config, path := range map[string]string{
		`{"limit":[{"type":"nofiles","soft":1,"hard":2}]}`:                                "limit[0]",
		`{"limit":[{"type":"nofile","soft":3,"hard":2}]}`:                                 "limit[0].soft",
		`{"limit":[{"type":"core","soft":1,"hard":2},{"type":"core","soft":1,"hard":2}]}`: "limit[1]",
		`{"limit":[{"type":"core","soft":"much","hard":2}]}`:                              "limit[0].soft",
		`{"limits":[]}`: "limits",
	} {
		errs := moduletest.Dial(t, rlimits.New()).Configure(t, config)
		if len(errs) != 1 || errs[0].GetPath() != path {
			t.Errorf("Configure(%s) = %v, want one error at %s", config, errs, path)
		}
	}
}

func TestCleanupOfAnUnknownContainerSucceeds(t *testing.T) {
	c := moduletest.Start(t, rlimits.New(), `{}`)
	_, err := c.Isolator.Cleanup(context.Background(), &isolatorv1.CleanupRequest{Record: &isolatorv1.ContainerRecord{Container: &containerv1.Container{Id: "never-seen"}}})
	if err != nil {
		t.Errorf("Cleanup of an unknown container: %v, want success", err)
	}
}
