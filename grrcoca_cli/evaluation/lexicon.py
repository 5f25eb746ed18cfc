"""The words that the clinical proxies look for: short lists, to be read and argued with.

A word that is missing here is a mention that is not counted; a word with two meanings was left out.
"""

LEXICON_VERSION = 1
"""For signatures: goes up with every change that can change a count."""

MODALITIES = {
    "CT": "ct cect ncct hrct cbct mdct ldct cta tomodensitometry"
    r"|comput(?:ed|erized|erised) (?:axial )?tomograph\w*",
    "MR": "mri mr fmri cmr mrcp mra dwi flair stir"
    r"|magnetic resonance|t[12](?:\*| star)?[ -]?w(?:i\b|eighted)?",
    "X-ray": "xray xrays radiograph radiographs radiography radiographic radiogram roentgenogram opg cxr "
    "orthopantomogram orthopantomograph|x[ -]rays?|plain films?",
    "ultrasound": "ultrasound ultrasonography ultrasonographic ultrasonogram sonogram sonography sonographic "
    "echocardiography echocardiogram echocardiographic doppler tte tee eus ivus",
    "PET": r"pet|positron emission tomograph\w*",
    "scintigraphy": "scintigraphy scintigraphic scintigram spect|bone scan",
    "angiography": "angiography angiogram angiographic arteriography arteriogram venography venogram dsa cta mra "
    "aortography aortogram angio",
    "mammography": "mammography mammogram mammographic mammograms tomosynthesis",
    "fluoroscopy": "fluoroscopy fluoroscopic barium videofluoroscopy esophagogram oesophagogram esophagram",
}
"""Words, then ``|`` and patterns, by the modality they name; one word may name two (``cta``)."""

PLANES = {
    "axial": "axial transverse transaxial transversal",
    "coronal": "coronal",
    "sagittal": "sagittal parasagittal midsagittal",
}

VIEWS = {
    "frontal": "pa ap posteroanterior anteroposterior frontal|postero-anterior|antero-posterior",
    "lateral": "lateral",
}
"""Views count beside a word for a radiograph (`VIEW_WORDS`): elsewhere ``lateral`` is a place."""

VIEW_WORDS = (
    "(?:(?:chest|skull|spine|cervical|knee|hip|pelvic|abdominal) )?"
    "(?:views?|projection|radiographs?|x[ -]?rays?|film|cephalogram)"
)

FINDINGS = """
    abnormality abscess adenopathy air-leak aneurysm appendicitis ascites atelectasis bleeding bronchiectasis
    calcification calculus cardiomegaly cavitation cavity collapse collection compression consolidation contusion cyst
    deformity
    deviation dilatation dilation dislocation displacement dissection diverticulum edema effusion embolism embolus
    emphysema encasement enhancement enlargement erosion extravasation fibrosis fistula fracture gallstone granuloma
    hematoma hemorrhage hepatomegaly hernia herniation hydrocephalus hydronephrosis infarct infarction infiltrate
    infiltration inflammation invasion involvement ischemia leak leakage lesion loosening lucency lymphadenopathy
    malformation mass metastasis narrowing necrosis nodule nonunion obstruction occlusion opacity osteolysis
    osteomyelitis osteophyte perforation pneumomediastinum pneumonia pneumoperitoneum pneumothorax polyp
    pseudoaneurysm recurrence reflux regurgitation rupture scoliosis shift shunt splenomegaly stenosis stone stricture
    swelling tear thickening thrombosis thrombus tumor ulcer uptake
"""
"""What is found or not; plurals and British spelling are brought to these forms."""

SPELLINGS = {
    "oedema": "edema",
    "haemorrhage": "hemorrhage",
    "haemorrhages": "hemorrhage",
    "haematoma": "hematoma",
    "haematomas": "hematoma",
    "tumour": "tumor",
    "tumours": "tumor",
    "ischaemia": "ischemia",
    "oesophagus": "esophagus",
    "metastases": "metastasis",
    "metastatic": "metastasis",
    "thrombi": "thrombus",
    "emboli": "embolus",
    "stenoses": "stenosis",
    "calculi": "calculus",
    "diverticula": "diverticulum",
    "masses": "mass",
    "abscesses": "abscess",
    "opacities": "opacity",
    "cavities": "cavity",
    "abnormalities": "abnormality",
    "deformities": "deformity",
    "lymphadenopathies": "lymphadenopathy",
}

DENIALS = frozenset(["no", "not", "without", "absence", "absent", "negative", "never", "neither", "nor"])
"""Words that deny the findings behind them, up to the end of the clause."""

NO_DENIALS = frozenset(
    ["contrast", "intravenous", "iv", "gadolinium", "sedation", "change", "changes", "significant", "longer", "other"]
)
"""Followers that leave a finding standing: ``without contrast``, ``no change in effusion``."""

NEGATIVE_KINDS = frozenset(["gram", "rh", "culture", "her2"])
"""Words before ``negative`` that make it a kind and no denial: gram-negative pneumonia."""

LATE_DENIALS = frozenset(["absent", "excluded", "unseen"])
"""Words that deny the finding right before them: ``effusion is absent``; so does ``not`` with a verb of seeing."""

STOP_WORDS = """
    a an and are as at be been being both but by can could did do does for from had has have he her his if in into is it
    its may more most of on or our over shows showing shown seen she side sided that the their there these this those
    through to under was were which while who with within
    """
"""Words that a side does not belong to."""

NOT_SIDES = {
    "left": frozenset(["in", "untreated", "alone", "behind", "open", "unchanged", "over", "untouched", "blank"]),
    "right": frozenset(["now", "away", "before", "handed", "angle", "angles", "angled", "after"]),
}
"""Followers that make ``left`` a verb and ``right`` no side."""
