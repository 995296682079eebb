"""What is noted and refused of a column of labels, word for word, and which tasks come out."""
import numpy as np
import pytest

from hiccap.labels import class_name, declared_classes, declared_labels, read_labels
from hiccap.tasks import IGNORE, Task


def read(values, **kwargs):
    "A column `y` of the clips a0, a1, …"
    return read_labels(dict(y=values), [f'a{i}' for i in range(len(values))], **kwargs)


def problem(values, **kwargs):
    "The clip and the message of the only problem of a column"
    o, = read(values, **kwargs).problems
    return o.clip, str(o)


@pytest.mark.parametrize('value, name', [
    (True, '1'), (np.int64(3), '3'), (2., '2'), (2.5, '2.5'), (' so ', 'so'), ([0, 1, 0], '1'), ([0, 1], '1'),
    (np.array([1, 0]), '0'), (None, None), (float('nan'), None), ('', None)])
def test_the_class_that_a_value_names(value, name): assert class_name(value) == name


@pytest.mark.parametrize('value', [[1], [0], [], [1, 1], [0, 0], [0, 2], dict(a=1), (0, 1), b'yes'])
def test_what_names_no_class(value):
    with pytest.raises(ValueError): class_name(value)


def test_a_column_of_answers_says_how_it_was_read():
    found = read(['no', 'yes', 'yes', 'no'])
    assert found.numbers == dict(y=[0, 1, 1, 0]) and found.tasks[0].classes == ('no', 'yes')
    assert found.notes == ["column 'y' was read as the classes no (2), yes (2)"]
    mixed = read(['no', 'Yes', '1', '0'])
    assert mixed.numbers == dict(y=[0, 1, 1, 0]) and mixed.tasks == (Task('y'),)
    assert mixed.notes[0] == "0, 1, Yes, no in column 'y' are read as no and yes"


def test_the_usual_spelling_is_noted_with_the_others():
    found = read(['joy', 'joy', 'Joy', 'JOY', 'fear', 'fear'])
    assert found.notes == ["'JOY', 'Joy' in column 'y' is read as 'joy'",
                           "column 'y' was read as the classes fear (2), joy (4)"]
    assert found.tasks[0].classes == ('fear', 'joy') and found.numbers == dict(y=[1, 1, 1, 1, 0, 0])


def test_words_for_a_missing_label_are_noted_with_their_clips():
    found = read(['a', 'NA', 'b', 'NA', '', 'a', 'b'])
    assert found.notes == ["2 clips have 'NA' in column 'y', which is read as no label: a1, a3",
                           "column 'y' was read as the classes a (2), b (2); 3 clips have no label"]
    assert found.numbers == dict(y=[0, IGNORE, 1, IGNORE, IGNORE, 0, 1])


def test_a_column_of_numbers_says_how_it_was_read():
    task = Task('y', kind='regression', scale=(0., 10.))
    found = read(['1.5', 9, '', '4'], tasks=[task])
    assert found.notes == ["column 'y' was read as 3 numbers from 1.5 to 9; 1 clips have no label"]
    np.testing.assert_array_equal(found.numbers['y'], [1.5, 9, np.nan, 4])
    assert read([1, 2, 3], tasks=[task]).notes == ["column 'y' was read as 3 numbers from 1 to 3"]
    assert read(['', ''], tasks=[task]).notes == [
        "column 'y' was read as numbers, of which there is none; 2 clips have no label"]
    assert problem([1, 11], tasks=[task])[0] == 'a1' and 'from 0 to 10' in problem([1, 11], tasks=[task])[1]
    assert "label 'many' of regression task 'y'" in problem([1, 'many'], tasks=[task])[1]


@pytest.mark.parametrize('values, clip, says', [
    ([0, 1, 3, 1], 'a2', "label '3' of column 'y', though no clip has label 2"),
    ([0, 2, 3, 2], 'a2', "label '3' of column 'y', though no clip has label 1"),
    ([1, 2, 1, 2], 'a1', "label '2' of column 'y', though no clip has label 0"),
    ([1, 0, -1, 1], 'a2', "label '-1' of column 'y', which is below 0"),
    ([2, 3], 'a1', "declare them: --labels 'y:2,3'"),
    (list(range(21)), 'a0', 'the column holds 21 different numbers, which are a scale'),
    ([0, .5, 1], 'a1', "label '0.5' of column 'y': the column holds 3 different numbers"),
    (['g', 'f', 'e', 'd', 'c', 'b', '?'], 'a6', "--labels 'y:?,b,c,d,e'"),
    (['0', '1', 'maybe', '1'], 'a2', "label 'maybe' of column 'y', while the other labels are numbers"),
    (['a', 'b', '7', 'b'], 'a2', "label '7' of column 'y', while the other labels are words"),
    (['yes', 'y', 'yes'], 'a0', 'y,yes may be names, or mean the same answer')])
def test_what_may_be_a_mistake_names_the_clip(values, clip, says):
    found = problem(values)
    assert found[0] == clip and says in found[1], found


@pytest.mark.parametrize('values, n', [([0, 1, 0], 2), ([1, 1], 2), ([0, 0], 2), ([0, 1, 2], 3), (list(range(20)), 20)])
def test_whole_numbers_from_0_are_classes(values, n):
    found = read(values)
    assert not found.problems and found.tasks == (Task('y', n),) and found.numbers == dict(y=values)


def test_columns_without_two_classes():
    assert "column 'y' holds no label" in str(read(['', None]).problems[0])
    assert "column 'y' holds one class only, 'a'" in str(read(['a', 'a']).problems[0])


def test_texts_are_no_classes():
    many = [f'text {i}' for i in range(21)]
    assert "holds 21 different texts in 21 rows, which are no classes" in problem(many)[1]
    twice = read(many + many)  # a class may be there twice
    assert not twice.problems and len(twice.tasks[0].classes) == 21
    assert not read(many[:20]).problems


@pytest.mark.parametrize('text, names', [
    ('yes,no', ('yes', 'no')), ('1..3', ('1', '2', '3')), (' -1 .. 1 ', ('-1', '0', '1')),
    ('a, b ,c', ('a', 'b', 'c'))])
def test_classes_that_are_declared(text, names): assert declared_classes(text) == names


@pytest.mark.parametrize('text', ['yes', '', 'a,', 'a,A', '3..3', '4..2'])
def test_classes_that_cannot_be(text):
    with pytest.raises(ValueError, match='declares no classes'): declared_classes(text)


def test_declarations_by_text_and_by_settings():
    found = declared_labels(['a', 'b:no,yes', 'c:regression', 'd:regression:-3..3', 'x:y'], ['a', 'b', 'c', 'd', 'x:y'])
    assert found['a'] is None and found['b'] == ('no', 'yes') and found['x:y'] is None
    assert found['c'].is_regression and found['c'].scale is None and found['d'].scale == (-3., 3.)
    more = declared_labels(['a'], classes=dict(a=['x', 'y'], b=dict(classes=['u', 'v']),
                                               c=dict(kind='regression', scale=(0., 1.), loss='mse'),
                                               d='regression:0..5'))
    assert more['a'] == ('x', 'y') and more['b'] == ('u', 'v')
    assert more['c'].loss == 'mse' and more['c'].scale == (0., 1.)
    assert more['d'].scale == (0., 5.)
    for classes, says in ((dict(a=dict(clases=['x', 'y'])), "has no setting 'clases'. Did you mean 'classes'"),
                          (dict(a={}), 'give its classes, or kind: regression'),
                          (dict(a='regression:3..1'), 'is not a scale')):
        with pytest.raises(ValueError, match=says): declared_labels(['a'], classes=classes)


def test_two_spellings_are_one_class():
    assert read(['Joy', 'joy', 'joy', 'fear']).notes[0] == "'Joy' in column 'y' is read as 'joy'"


def test_a_column_without_labels_names_its_file_and_what_to_do():
    o, = read(['', None], path='clips.csv').problems
    assert 'clips.csv' in str(o) and 'Leave it out, or label some rows' in str(o)
    o, = read(['a', 'a'], path='clips.csv').problems
    assert 'clips.csv' in str(o) and 'A task needs two' in str(o)


def test_two_tasks_of_one_name_are_refused():
    columns = dict(sad=['0', '1', '1'], mood=['sad|joy', 'joy|fear', 'sad|fear'])
    o, = read_labels(columns, ['a', 'b', 'c'], separator='|', path='clips.csv').problems
    assert 'two tasks are called' in str(o) and 'sad' in str(o) and 'clips.csv' in str(o)


@pytest.mark.parametrize('names, sep, at', [
    (['joy', 'fear', 'joy,fear'], ',', 'joy,fear'), (['joy,fear', 'fear,anger'], ',', 'joy,fear'),
    (['sad', 'so / SAD'], '/', 'so / SAD'), (['a|b', 'c'], '|', 'a|b'), (['a', 'b; c'], ';', 'b; c'),
    (['sad', 'so, so'], None, None), (['sad/glad', 'so/so'], None, None), (['sad', 'glad,'], None, None),
    (['sad', ',sad'], None, None), (['a;', 'b'], None, None), (['x/y', 'x,z'], None, None)])
def test_labels_that_share_a_part_may_be_several_labels(names, sep, at):
    found = read_labels(dict(mood=names), [str(n) for n in range(len(names))])
    if sep is None: assert found.tasks == (Task('mood', classes=tuple(sorted(names))),) and not found.problems
    else:
        assert found.tasks == () and f"label {at!r} of column 'mood' may hold several" in str(found.problems[0])
        assert f"--separator '{sep}'" in str(found.problems[0])
        assert ('declare all of them' in str(found.problems[0])) == (sep != ',')


def test_several_labels_in_a_cell_say_how_many_clips_have_none():
    found = read(['sad|joy', '', 'joy', 'fear'], separator='|')
    assert [t.name for t in found.tasks] == ['fear', 'joy', 'sad']
    assert found.numbers['joy'] == [1, IGNORE, 1, 0]
    assert found.notes[-1].endswith('; 1 clips have no label, which is not the answer no')
    assert 'have no label' not in ''.join(read(['sad|joy', 'joy', 'fear'], separator='|').notes)
