"""The paper's data sets in their official layouts (downstream.py), with the awkward cases of the real files."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from films import film

from sources import official
from sources.official import KINDS, detect, parse, parts


def load(text, problems, part=1):
    return official.load(text, Path(tempfile.mkdtemp()), problems, part)


def put(root, *media, **texts):
    """Empty media files, and lists: a name's "__" is a "/", its last "_" a "." """
    for name in media:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in texts.items():
        path = root / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return root


def names(rows):
    """The rows as (name of the file, its class, its classes or its caption)"""
    known = lambda row: row.captions[0].text if row.captions else row.labels if len(row.labels) > 1 else row.labels[0]
    return [(Path(row.path).name, known(row)) for row in rows]


def parted(rows):
    """The rows as (name of the file, start, end, caption)"""
    return [(Path(row.path).name, row.start, row.end, row.captions[0].text) for row in rows]


# UCF101

INDEX = "1 HammerThrow\r\n2 Hammering\r\n3 HandstandPushups\r\n"                # no order of Python's
TRAIN = "Hammering/v_Hammering_g08_c01.avi 2\r\nHandStandPushups/v_HandStandPushups_g08_c01.avi 3\r\n"


def ucf101(root, **texts):
    lists = {"classInd_txt": INDEX, "trainlist01_txt": TRAIN,
             "testlist01_txt": "HammerThrow/v_HammerThrow_g01_c01.avi\r\nHammering/v_Hammering_g01_c01.avi\r\n", **texts}
    return put(root, "UCF-101/Hammering/v_Hammering_g08_c01.avi", "UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi",
               "UCF-101/HammerThrow/v_HammerThrow_g01_c01.mp4", **{f"ucfTrainTestlist__{name}": x for name, x in lists.items()})


def test_ucf101_has_classes_in_its_own_order_from_1_and_capitals_do_not_matter(tmp_path):
    data = load(str(ucf101(tmp_path)), [])
    assert data.name == "ucf101"
    assert data.classes == ["HammerThrow", "Hammering", "HandstandPushups"]
    assert names(data.train) == [("v_Hammering_g08_c01.avi", 1), ("v_HandStandPushups_g08_c01.avi", 2)]


def test_ucf101_counts_what_is_missing_and_takes_other_containers(tmp_path):
    data = load(str(ucf101(tmp_path)), [])
    assert names(data.test) == [("v_HammerThrow_g01_c01.mp4", 0)]
    assert data.missing == ["Hammering/v_Hammering_g01_c01.avi"]
    assert data.listed == (2, 2)


def test_ucf101_has_three_splits(tmp_path):
    root = ucf101(tmp_path, trainlist03_txt="Hammering/v_Hammering_g08_c01.avi 2\n", testlist03_txt=TRAIN)
    assert parts(str(root)) == 3
    assert len(load(str(root), [], 3).train) == 1
    with pytest.raises(ValueError, match=r"no trainlist02.txt: get it from www.crcv"):
        load(str(root), [], 2)
    with pytest.raises(ValueError, match=r"no split or fold 4 .* has 1 to 3"):
        load(str(root), [], 4)


@pytest.mark.parametrize(("texts", "said"), [
    ({"trainlist01_txt": "Hammering/v_Hammering_g08_c01.avi 1\n"}, "trainlist01.txt:1: .* is class 2"),
    ({"testlist01_txt": "Archery/v_Archery_g01_c01.avi\n"}, "testlist01.txt:1: 'archery' is none of the 3 classes"),
    ({"classInd_txt": "1 HammerThrow\n3 Hammering\n"}, "classInd.txt:2: '3 Hammering' is not class 2"),
])
def test_ucf101_lists_that_contradict_each_other_are_errors_with_file_and_line(tmp_path, texts, said):
    with pytest.raises(ValueError, match=said):
        load(str(ucf101(tmp_path, **texts)), [])


def test_a_second_copy_of_a_list_is_an_error_and_counts_nothing_twice(tmp_path):
    root = hmdb51(tmp_path, **OFFICIAL, copy__climb_test_split1_txt=OFFICIAL["splits__climb_test_split1_txt"])
    with pytest.raises(ValueError, match=r"holds two climb_test_split1\.txt"):
        load(f"hmdb51={root}", [])


# HMDB51

def hmdb51(root, **texts):
    return put(root, "brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi", "brush_hair/[x]!_brush_hair_0.avi",
               "climb/a_climb_0.avi", "climb_stairs/a_climb_stairs_0.avi", **texts)


OFFICIAL = {"splits__brush_hair_test_split1_txt": "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n[x]!_brush_hair_0.avi 2 \n",
            "splits__climb_test_split1_txt": "a_climb_0.avi 0 \nb_climb_0.avi 2 \n",
            "splits__climb_stairs_test_split1_txt": "a_climb_stairs_0.avi 1 \n"}


def test_hmdb51_codes_are_1_train_2_test_0_neither_and_names_may_hold_brackets(tmp_path):
    problems = []
    data = load(str(hmdb51(tmp_path, **OFFICIAL)), problems)
    assert data.classes == ["brush_hair", "climb", "climb_stairs"]
    assert names(data.train) == [("April_09_brush_hair_u_nm_np1_ba_goo_0.avi", 0), ("a_climb_stairs_0.avi", 2)]
    assert names(data.test) == [("[x]!_brush_hair_0.avi", 0)]
    assert data.missing == ["b_climb_0.avi"]
    assert "3 classes, not 51" in problems[0]


def test_hmdb51_comes_in_one_csv_too(tmp_path):
    text = ("video_id,label,split1,split2,split3\nApril_09_brush_hair_u_nm_np1_ba_goo_0.avi,brush_hair_test,1,1,2\n"
            "a_climb_0.avi,climb_test,0,2,1\n")
    root = hmdb51(tmp_path, csv__hmdb51_csv=text)
    assert detect(root) == "hmdb51"
    splits = [load(str(root), [], k) for k in (1, 2, 3)]
    assert [(len(data.train), len(data.test)) for data in splits] == [(1, 0), (1, 1), (1, 1)]


def test_hmdb51_refuses_another_code(tmp_path):
    with pytest.raises(ValueError, match=r"climb_test_split1.txt:1: .* '3', not 1"):
        load(str(hmdb51(tmp_path, **{**OFFICIAL, "splits__climb_test_split1_txt": "a_climb_0.avi 3\n"})), [])


# Kinetics

TRAIN_CSV = ("label,youtube_id,time_start,time_end,split,is_cc\nabseiling,-0wR5jVB-WP,417,427,train,0\n"
             '"massaging person\'s head",_0wR5jVB-WP,7.0,17.0,train,0\n"tying knot (not on a tie)",Y0wR5jVB-_P,0,10,train,0\n')
VAL_CSV = "label,youtube_id,time_start,time_end,split\nabseiling,00000000000,59,69,validate\nabseiling,1_2_3_4_5_6,1,11,val\n"


def kinetics(root, *media, **texts):
    unlabelled = "youtube_id,time_start,time_end,split\n00000000001,1,11,test\n"
    return put(root, *media, **{"annotations__train_csv": TRAIN_CSV, "annotations__validate_csv": VAL_CSV,
                                "annotations__test_csv": unlabelled, **texts})


@pytest.mark.parametrize("folders", [
    ("train", "train", "val"), ("train/abseiling", "train/massaging person's head", "val/abseiling"),
    ("train/abseiling", "train/massaging_person's_head", "val/abseiling")], ids=["flat", "classes", "with underscores"])
def test_kinetics_in_all_three_layouts_with_ids_that_begin_with_a_dash_and_missing_films(tmp_path, folders):
    root = kinetics(tmp_path, f"{folders[0]}/-0wR5jVB-WP_000417_000427.mp4", f"{folders[1]}/_0wR5jVB-WP_000007_000017.mp4",
                    f"{folders[2]}/1_2_3_4_5_6_000001_000011.mp4")
    assert detect(root) == "kinetics"
    data = load(str(root), [])
    assert data.classes == ["abseiling", "massaging person's head", "tying knot (not on a tie)"]
    assert names(data.train) == [("-0wR5jVB-WP_000417_000427.mp4", 0), ("_0wR5jVB-WP_000007_000017.mp4", 1)]
    assert names(data.test) == [("1_2_3_4_5_6_000001_000011.mp4", 0)]
    assert data.missing == ["Y0wR5jVB-_P 0-10 s", "00000000000 59-69 s"]
    assert data.train[0][1:3] == (0, math.inf)


def test_kinetics_whole_films_give_the_part_that_is_listed(tmp_path):
    data = load(str(kinetics(tmp_path, "films/00000000000.mkv")), [])
    assert data.test[0][1:3] == (59, 69)


def test_kinetics_cuts_that_are_named_by_the_id_alone_are_taken_whole_and_counted(tmp_path):
    root, problems = kinetics(tmp_path, "val/1_2_3_4_5_6.mp4"), []
    film(tmp_path / "val" / "00000000000.mp4", seconds=10.4)
    film(tmp_path / "val" / "1_2_3_4_5_6.mp4", seconds=14)
    assert [row[:3] for row in load(str(root), problems).test] == [
        ("val/00000000000.mp4", 0, math.inf), ("val/1_2_3_4_5_6.mp4", 1, 11)]
    assert f"{root}: 1 files named by an id alone are hardly longer than their segments, and are taken for them" in problems[-1]


def test_kinetics_takes_the_replacement_of_a_damaged_film(tmp_path):
    name = "1_2_3_4_5_6_000001_000011.mp4"
    for folders in (("a", "z/replacement_for_corrupted_k400"), ("z", "replacement/replacement_for_corrupted_k400")):
        root = kinetics(tmp_path / folders[0], *(f"{folder}/{name}" for folder in folders))
        assert "replacement" in str(load(str(root), []).test[0].path)


def test_kinetics_without_a_list_for_training_says_so_and_can_be_tested_on(tmp_path):
    root = put(tmp_path, "val/1_2_3_4_5_6_000001_000011.mp4", **{"kinetics-400_val_csv": VAL_CSV})
    problems = []
    data = load(str(root), problems)
    assert (len(data.train), len(data.test)) == (0, 1)
    assert "holds no train.csv" in problems[0]


@pytest.mark.parametrize(("texts", "said"), [
    ({"annotations__validate_csv": VAL_CSV.replace("abseiling", "golfing")}, "validate.csv:2: 'golfing' is none of the 3"),
    ({"annotations__validate_csv": VAL_CSV.replace("59,69", "69,59")}, "validate.csv:2: 00000000000 has no valid time: 69"),
    ({"annotations__validate_csv": VAL_CSV.replace("00000000000", "#NAME?")}, "validate.csv:2: '#NAME.' is no id"),
    ({"annotations__validate_csv": "youtube_id,time_start,time_end,split\n"}, "validate.csv:1: the header has no label"),
    ({"val_csv": VAL_CSV}, "more than one val.csv"),
])
def test_kinetics_lists_that_cannot_be_are_errors_with_file_and_line(tmp_path, texts, said):
    with pytest.raises(ValueError, match=said):
        load(f"kinetics={kinetics(tmp_path, **texts)}", [])


# Moments in Time

def mit(root, classes=339, **texts):
    index = "".join(f"{'adult+female+singing' if i == 1 else f'name{i}'},{i}\n" for i in reversed(range(classes)))
    return put(root, "training/adult+female+singing/x-1.mp4", "validation/name0/x-1.mp4", **{
        "moments_categories_txt": index, "trainingSet_csv": "adult+female+singing/x-1.mp4,adult female singing,3,0\n",
        "validationSet_csv": "name0/x-1.mp4,name0,3,0\nname0/x-2.mp4,name0,2,1\n", **texts})


def test_moments_in_time_has_no_headers_its_own_order_and_plus_signs_for_blanks(tmp_path):
    data = load(str(mit(tmp_path)), [])
    assert data.name == "mit"
    assert data.classes[:3] == ["name0", "adult+female+singing", "name2"]
    assert names(data.train) == [("x-1.mp4", 1)]
    assert names(data.test) == [("x-1.mp4", 0)]
    assert data.missing == ["name0/x-2.mp4"]


def test_moments_in_time_refuses_version_2(tmp_path):
    with pytest.raises(ValueError, match="has 305 lines: version 1 has 339"):
        load(str(mit(tmp_path, 305)), [])


# ESC-50

ESC = ("filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n"
       "2-100033-A-36.wav,2,36,vacuum_cleaner,False,100033,A\n5-100034-A-0.wav,5,0,dog,True,100034,A\n")


def test_esc50_fold_k_is_the_test_and_targets_that_are_not_there_leave_no_gaps(tmp_path):
    root = put(tmp_path, "audio/1-100032-A-0.ogg", "audio/2-100033-A-36.wav", "audio/5-100034-A-0.wav", meta__esc50_csv=ESC)
    assert parts(str(root)) == 5
    data = load(str(root), [], 5)
    assert (data.name, data.kind, data.classes) == ("esc50", "audio", ["dog", "vacuum_cleaner"])
    assert names(data.train) == [("1-100032-A-0.ogg", 0), ("2-100033-A-36.wav", 1)]
    assert names(data.test) == [("5-100034-A-0.wav", 0)]


@pytest.mark.parametrize(("text", "said"), [
    (ESC.replace("A-36.wav,2", "A-36.wav,7"), "esc50.csv:3: fold '7'"),
    (ESC.replace(",0,dog,True,100034", ",0,cat,True,100034"), "esc50.csv:4: cat has the")])
def test_esc50_refuses_what_its_list_cannot_say(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        load(str(put(tmp_path, meta__esc50_csv=text)), [])


# AudioSet

HEAD = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=3\n# YTID, start_seconds, end_seconds, positive_labels\n"
LABELS = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, man speaking"\n2,/t/dd00088,"Gargling"\n'
BALANCED = HEAD + '--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\nB0000000000, 0.000, 10.000, "/m/05zppz"\n'


def audioset(root, *media, **texts):
    return put(root, *media, **{
        "balanced_train_segments_csv": BALANCED,
        "unbalanced_train_segments_csv": HEAD + 'U0000000000, 1.000, 11.000, "/m/09x0r"\n',
        "eval_segments_csv": HEAD + 'Y_000000000, 10.000, 20.000, "/m/05zppz"\nE0000000000, 0.000, 8.000, "/m/09x0r"\n',
        "class_labels_indices_csv": LABELS, **texts})


def test_audioset_has_several_labels_a_clip_blanks_before_quotes_and_files_named_in_every_way(tmp_path):
    root = audioset(tmp_path, "balanced/Y--PJHxphWEs.wav", "balanced/B0000000000_0.000.flac", "part00/YU0000000000.wav",
                    "eval/Y_000000000_10000_20000.mp4")
    data = load(str(root), [])
    assert (data.name, data.kind, data.multi) == ("audioset", "audio", True)
    assert data.classes == ["Speech", "Male speech, man speaking", "Gargling"]
    assert names(data.train) == [("Y--PJHxphWEs.wav", (0, 2)), ("B0000000000_0.000.flac", 1), ("YU0000000000.wav", 0)]
    assert data.train[0][1:3] == (30, 40)
    assert data.train[1][1:3] == (0, math.inf)
    assert names(data.test) == [("Y_000000000_10000_20000.mp4", 1)]
    assert data.missing == ["E0000000000 0-8 s"]
    assert data.listed == (3, 2)


def test_audioset_reads_a_copy_with_mangled_quotes_and_tells_of_rows_it_cannot_read(tmp_path):
    text = 'YTID,start_seconds,end_seconds,positive_labels\nE0000000000,0,8,"""/m/09x0r"",/t/dd00088",,,\n#NAME?,0,10,\n'
    problems = []
    data = load(str(audioset(tmp_path, "YE0000000000.wav", eval_segments_csv=text)), problems)
    assert names(data.test) == [("YE0000000000.wav", (0, 2))]
    assert "eval_segments.csv:3: '#NAME?' is no id" in problems[0]


def test_audioset_refuses_a_label_that_its_list_of_classes_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"B0000000000: '/m/05zppz' is none of the 2 classes of class_labels_indices.csv"):
        load(str(audioset(tmp_path, class_labels_indices_csv=LABELS.replace("1,/m/05zppz", "1,/m/other").replace("2,", "1,")
                          .replace('1,/m/other,"Male speech, man speaking"\n', ""))), [])


# ImageNet

def test_imagenet_numbers_are_the_order_of_the_wnids(tmp_path):
    root = put(tmp_path, "train/n02012849/n02012849_1.JPEG", "train/n01440764/n01440764_9.JPEG",
               "val/n02012849/ILSVRC2012_val_00000001.JPEG")
    problems = []
    data = load(str(root), problems)
    assert (data.name, data.kind) == ("imagenet", "image")
    assert data.classes == ["n01440764", "n02012849"]
    assert names(data.test) == [("ILSVRC2012_val_00000001.JPEG", 1)]
    assert "2 classes, not 1000" in problems[0]


def test_imagenet_refuses_validation_images_that_nobody_sorted(tmp_path):
    with pytest.raises(ValueError, match="sort them into val/<wnid>/"):
        load(str(put(tmp_path, "train/n01440764/n01440764_9.JPEG", "val/ILSVRC2012_val_00000001.JPEG")), [])


# captions

def test_youcook2_reads_columns_by_name_because_the_end_comes_before_the_start(tmp_path):
    text = ("end,start,task,text,video_id\n60,47,226,pick the ends off,xHr8X2Wpmno\n89,67,226,mix,XHR8x2wPMNO\n"
            "9,7,1,mix,-_000000000\n")
    root = put(tmp_path, "validation/226/xHr8X2Wpmno.webm", "validation/1/-_000000000.mkv", validation_youcook_csv=text)
    data = load(str(root), [])
    assert (data.name, data.classes, list(data.train)) == ("youcook2", [], [])
    assert parted(data.test) == [
        ("xHr8X2Wpmno.webm", 47, 60, "pick the ends off"), ("-_000000000.mkv", 7, 9, "mix")]
    assert data.missing == ["XHR8x2wPMNO 67-89 s"], "ids differ in capitals"


def test_youcook2_reads_the_official_json_whose_test_films_have_no_captions(tmp_path):
    film = lambda subset, youtube: {"duration": 9.0, "subset": subset, "recipe_type": "1", "video_url": youtube,
                                    "annotations": [{"segment": [1, 2], "id": 0, "sentence": "mix"}]}
    database = {"A0000000000": film("training", "a"), "B0000000000": film("validation", "b")}
    root = put(tmp_path, "A0000000000.mp4", "B0000000000.mp4",
               youcookii_annotations_trainval_json=json.dumps({"database": database}))
    assert parted(load(str(root), []).test) == [("B0000000000.mp4", 1, 2, "mix")]
    put(tmp_path, youcookii_annotations_trainval_json="{}")
    with pytest.raises(ValueError, match="not of the official form"):
        load(str(root), [])


def test_msrvtt_1k_a_gives_one_caption_a_film(tmp_path):
    text = ('key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person connecting\n'
            'ret1,msr7020,video7020,"a woman, a baby"\n')
    root = put(tmp_path, "MSRVTT/videos/all/video7020.mp4", "MSRVTT/videos/all/video9770.mp4", MSRVTT_JSFUSION_test_csv=text)
    data = load(str(root), [])
    assert data.name == "msrvtt"
    assert names(data.test) == [("video9770.mp4", "a person connecting"), ("video7020.mp4", "a woman, a baby")]


# all of them

@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("folder", "imagenet", "csv")])
def test_a_missing_list_is_named_with_the_place_to_get_it_from(tmp_path, kind):
    with pytest.raises(ValueError, match=r"holds no [^:]+: get it|get .* from"):
        load(f"{kind}={put(tmp_path, 'a/b.mp4')}", [])


def test_where_no_listed_file_is_there_one_line_says_so(tmp_path):
    root = put(tmp_path, meta__esc50_csv=ESC)
    with pytest.raises(ValueError, match=r"none of the 3 listed files lies below .*first is 2-100033-A-36.wav"):
        load(str(root), [])


@pytest.mark.parametrize(("text", "said"), [
    ("k400={}", "is no kind of data"), ("{}/nowhere", "there is no"), ("esc50=", "names no folder"),
    ("esc50={}/a.csv", "is a file: name the folder"), ("{}/b.mp4", "neither a folder nor a csv"),
    ("csv={}", "a folder without labels.csv or captions.csv")])
def test_a_source_that_cannot_be_is_refused_in_one_line(tmp_path, text, said):
    put(tmp_path, "b.mp4", a_csv="path,label\n")
    with pytest.raises(ValueError, match=said):
        parse(text.format(tmp_path))
