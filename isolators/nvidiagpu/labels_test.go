package nvidiagpu

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	containerv1 "github.com/mosaic-cluster/mosaic/sdk/proto/mosaic/container/v1"
)

func TestLabelsOfAnImageAreReadWhereTheContractHasThem(t *testing.T) {
	optional, repeated := descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	text := descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum()
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("image.proto"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{
			Name: proto.String("Image"),
			Field: []*descriptorpb.FieldDescriptorProto{{
				Name: proto.String("labels"), Number: proto.Int32(1), Label: repeated, Type: descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum(), TypeName: proto.String(".Image.LabelsEntry"),
			}},
			NestedType: []*descriptorpb.DescriptorProto{{
				Name: proto.String("LabelsEntry"), Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
				Field: []*descriptorpb.FieldDescriptorProto{
					{Name: proto.String("key"), Number: proto.Int32(1), Label: optional, Type: text},
					{Name: proto.String("value"), Number: proto.Int32(2), Label: optional, Type: text},
				},
			}},
		}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	image := dynamicpb.NewMessage(file.Messages().ByName("Image"))
	labels := image.Mutable(file.Messages().ByName("Image").Fields().ByName("labels")).Map()
	labels.Set(protoreflect.ValueOfString("com.nvidia.volumes.needed").MapKey(), protoreflect.ValueOfString("nvidia_driver"))
	if got := imageLabels(image)[volumesNeeded]; got != neededVolume {
		t.Errorf("imageLabels gave %q for %s, want %q", got, volumesNeeded, neededVolume)
	}
	for _, none := range []*containerv1.ImageConfig{nil, {}} {
		if got := imageLabels(none); len(got) > 0 {
			t.Errorf("imageLabels of an image without any = %v", got)
		}
	}
}
