package scaffold

import (
	"fmt"
	"slices"

	_ "google.golang.org/grpc/health/grpc_health_v1" // its descriptors belong to the transport
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/mosaic-cluster/mosaic/sdk/module" // brings the contracts of all kinds
)

// Contract gives the descriptors of the transport's and all kinds' messages and services as a FileDescriptorSet, each
// file after those that it imports. It is what protoc writes with --descriptor_set_out --include_imports, and what a
// module in a language without generated code reads.
func Contract() ([]byte, error) {
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	var wanted []protoreflect.FileDescriptor
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if name := string(f.Package()); f.Services().Len() > 0 && (name == "grpc.health.v1" || isModuleContract(name)) {
			wanted = append(wanted, f)
		}
		return true
	})
	slices.SortFunc(wanted, func(a, b protoreflect.FileDescriptor) int {
		if a.Path() < b.Path() {
			return -1
		}
		return 1
	})
	for _, f := range wanted {
		add(f)
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("write down the contract: %w", err)
	}
	return data, nil
}

// isModuleContract says whether a package is one that modules speak; the protocol between master and agent is not.
func isModuleContract(pkg string) bool {
	const prefix = "mosaic."
	return len(pkg) > len(prefix) && pkg[:len(prefix)] == prefix && pkg != "mosaic.cluster.v1"
}
